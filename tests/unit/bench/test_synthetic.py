"""Prompts that nobody wrote, and when they are due."""

from __future__ import annotations

import itertools
import statistics

import pytest

from raycluster.bench.dataset import parse_dataset
from raycluster.bench.run import BenchOptions, load_of
from raycluster.bench.schedule import Open, arrivals, check_load
from raycluster.bench.synthetic import Synthetic, lines_of, parse_synthetic
from raycluster.core.errors import UsageError
from raycluster.openai_client.lines import TOKEN_IDS
from raycluster.openai_client.prompts import Defaults


def test_lengths_are_exact_and_the_prefix_is_shared() -> None:
    wanted = parse_synthetic("prompt=20, output=7,prefix=5,count=3")
    assert wanted == Synthetic(20, 7, 5, 3)
    dataset = parse_dataset(lines_of(wanted, 1), Defaults(max_tokens=99), where="here")
    bodies = [prompt.body for prompt in dataset.prompts]
    assert {prompt.path for prompt in dataset.prompts} == {"/v1/completions"}
    assert [len(body["prompt"]) for body in bodies] == [20, 20, 20]
    assert len({tuple(body["prompt"][:5]) for body in bodies}) == 1
    assert len({tuple(body["prompt"][5:]) for body in bodies}) == 3
    assert all(token in TOKEN_IDS for body in bodies for token in body["prompt"])
    assert {(body["max_tokens"], body["ignore_eos"]) for body in bodies} == {(7, True)}


def test_a_seed_gives_the_same_prompts_again() -> None:
    assert lines_of(Synthetic(), 1) == lines_of(Synthetic(), 1)
    assert lines_of(Synthetic(), 1) != lines_of(Synthetic(), 2)


@pytest.mark.parametrize(
    "text",
    [
        *("", "prompt", "prompt=", "prompt=x", "prompt=-1", "prompt=1,prompt=2", "speed=1"),
        *("prompt=0", "output=0", "count=0", "prompt=4,prefix=5", "prompt=100000,count=101"),
        "prompt=\u0664",
    ],
)
def test_what_cannot_be_made_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_synthetic(text)
    assert caught.value.where == "--synthetic"
    assert caught.value.hint


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_rate_and_the_spread_that_were_asked_for(burstiness: float) -> None:
    due = list(itertools.islice(arrivals(50.0, 7, burstiness), 20_000))
    gaps = [after - before for before, after in itertools.pairwise([0.0, *due])]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert (statistics.pstdev(gaps) / mean) ** 2 == pytest.approx(1 / burstiness, rel=0.1)


def test_burstiness_is_of_the_open_loop() -> None:
    [shape] = load_of(BenchOptions("f", rate="5", burstiness=0.5)).shapes
    assert shape == Open(5.0, None, 0.5)
    assert shape.label == "rate 5/s, burstiness 0.5"
    with pytest.raises(UsageError, match="alone"):
        load_of(BenchOptions("f", burstiness=0.5))
    with pytest.raises(UsageError, match="greater than zero"):
        check_load(load_of(BenchOptions("f", rate="5", burstiness=0.0)))
