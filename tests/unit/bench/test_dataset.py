from __future__ import annotations

import gzip
import io
import itertools
import json
import statistics
from pathlib import Path

import pytest

from raycluster.bench.dataset import (
    Dataset,
    Synthetic,
    lines_of,
    parse_dataset,
    parse_synthetic,
    read_dataset,
)
from raycluster.bench.run import BenchOptions, load_of
from raycluster.bench.schedule import Load, Open, RequestSequence, arrivals, check_load
from raycluster.core.errors import UsageError
from raycluster.openai_client.lines import TOKEN_IDS
from raycluster.openai_client.prompts import Defaults

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PLAIN = Defaults(max_tokens=None)
HI = {"role": "user", "content": "hi"}


def parse(text: str | bytes, defaults: Defaults = PLAIN) -> Dataset:
    content = text if isinstance(text, bytes) else text.encode()
    return parse_dataset(content, defaults, where="test")


@pytest.mark.parametrize(
    ("line", "format", "path", "body"),
    [
        ({"prompt": "hi"}, "prompt", CHAT, {"messages": [HI]}),
        ({"text": "hi"}, "text", CHAT, {"messages": [HI]}),
        ({"question": "hi", "answer": "x"}, "question", CHAT, {"messages": [HI]}),
        ("hi", "string", CHAT, {"messages": [HI]}),
        ({"prompt": [5, 6]}, "prompt", COMPLETIONS, {"prompt": [5, 6]}),
        ({"prompt": "hi", "top_p": 0.5}, "prompt", CHAT, {"messages": [HI], "top_p": 0.5}),
        ({"prompt": "hi", "output_tokens": 9}, "prompt", CHAT, {"messages": [HI], "max_tokens": 9}),
        (
            {"prompt": "hi", "max_tokens": 8, "output_tokens": 9},
            "prompt",
            CHAT,
            {"messages": [HI], "max_tokens": 8},
        ),
        (
            {"messages": [HI], "temperature": 0, "anything": [1], "id": "a"},
            "messages",
            CHAT,
            {"messages": [HI], "temperature": 0, "anything": [1]},
        ),
        (
            {"custom_id": "c", "method": "POST", "url": CHAT, "body": {"messages": [HI], "x": 1}},
            "batch",
            CHAT,
            {"messages": [HI], "x": 1},
        ),
        (
            {"custom_id": "c", "url": COMPLETIONS, "body": {"prompt": "hi"}},
            "batch",
            COMPLETIONS,
            {"prompt": "hi"},
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            "sharegpt",
            CHAT,
            {"messages": [HI]},
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "yo"},
                    {"from": "human", "value": "more"},
                ]
            },
            "sharegpt",
            CHAT,
            {"messages": [{"role": "system", "content": "s"}, HI]},
        ),
    ],
)
def test_understands(line: object, format: str, path: str, body: dict[str, object]) -> None:
    dataset = parse(json.dumps(line))
    (prompt,) = dataset.prompts
    assert dataset.census.formats == {format: 1}
    assert (prompt.path, prompt.body) == (path, body)


def test_a_bare_line_is_a_prompt_of_text() -> None:
    dataset = parse('Say "hi"\n"quoted" at the start\n[note] 1\n42\n')
    texts = [prompt.body["messages"][0]["content"] for prompt in dataset.prompts]
    assert texts == ['Say "hi"', '"quoted" at the start', "[note] 1", "42"]


def test_a_json_array_is_a_file_of_its_items() -> None:
    dataset = parse(json.dumps([{"prompt": "a"}, {"no": 1}, "b"], indent=2))
    assert [prompt.line for prompt in dataset.prompts] == [1, 3]
    assert [line for line, _ in dataset.census.refused] == [2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "not valid JSON"),
        (b'{"prompt": ""}', "prompt is empty"),
        (b'{"prompt": "  "}', "prompt is empty"),
        (b'{"prompt": 7}', "prompt is not a string"),
        (b'{"prompt": ["a", 2]}', "prompt is not a string"),
        (b'{"prompt": "a", "custom_id": 1.5}', "custom_id is 1.5"),
        (b'{"prompt": "a", "output_tokens": 0}', "output_tokens is 0"),
        (b'{"prompt": "a", "output_tokens": true}', "output_tokens is True"),
        (b'{"prompt": "a", "max_tokens": -1}', "max_tokens is -1"),
        (b'{"prompt": "a", "max_tokens": 1.5}', "max_tokens is 1.5"),
        (b'{"messages": [{"role": "user"}], "max_completion_tokens": -1}', "tokens is -1"),
        (b'{"body": {"messages": [{"role": "user"}], "max_tokens": "few"}}', "is 'few'"),
        (b'{"messages": []}', "messages is not a non-empty list"),
        (b'{"messages": ["a"]}', "a message has no role"),
        (b'{"body": 3, "custom_id": "a"}', "body is not an object"),
        (b'{"body": {}, "url": "/v1/chat/completions"}', "messages is not a non-empty list"),
        (b'{"body": {"input": "a"}, "url": "/v1/files"}', "is not served"),
        (b'{"body": {"messages": [{"role": "user"}]}, "method": "GET"}', "is not POST"),
        (b'{"conversations": []}', "no human turn"),
        (b'{"conversations": [{"from": "tool", "value": "x"}]}', "a turn lacks"),
        (b'{"other": 1}', "no field with a prompt"),
        (b"[1, 2]", "a JSON list is not a prompt"),
        (b'{"prompt": "\xff\xfe"}', "not UTF-8 at byte 13"),
        (b'{"a":' * 5000, "not valid JSON"),
    ],
)
def test_refuses_a_line_with_its_number_and_goes_on(line: bytes, reason: str) -> None:
    dataset = parse(b'"first"\n\n' + line + b'\n"last"\n')
    ((number, why),) = dataset.census.refused
    assert (number, dataset.census.lines) == (3, 3)
    assert reason in why
    assert [prompt.line for prompt in dataset.prompts] == [1, 4]


def test_line_ends_and_marks_of_other_systems() -> None:
    dataset = parse(b"\xef\xbb\xbfa\r\nb\xe2\x80\xa8c\r\n\r\n")
    texts = [prompt.body["messages"][0]["content"] for prompt in dataset.prompts]
    assert texts == ["a", "b\u2028c"]


def test_counts_the_fields_that_stay_unsent() -> None:
    dataset = parse('{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": 1, "source": 2}')
    assert dataset.census.unsent == {"answer": 2, "source": 1}


def test_ids_are_those_of_the_file_or_the_line() -> None:
    body = {"messages": [HI]}
    lines = [{"custom_id": "mine", "body": body}, {"prompt": "a", "id": 7}, {"prompt": "b"}]
    dataset = parse("\n".join(json.dumps(line) for line in lines))
    assert [prompt.id for prompt in dataset.prompts] == ["mine", "7", "line-3"]


def test_shape_fills_in_what_lines_leave_open() -> None:
    shape = Defaults("completions", max_tokens=16, ignore_eos=True)
    lines = [{"prompt": "a"}, {"messages": [HI], "max_completion_tokens": 3, "model": "m"}]
    first, second = parse("\n".join(json.dumps(line) for line in lines), shape).prompts
    assert (first.path, first.model) == (COMPLETIONS, "")
    assert first.body == {"prompt": "a", "max_tokens": 16, "ignore_eos": True}
    assert (second.path, second.model) == (CHAT, "m")
    assert second.body == {"messages": [HI], "max_completion_tokens": 3, "ignore_eos": True}


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"[]", b'{"x": 1}\n'])
def test_a_file_without_a_prompt_is_an_error(content: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        parse(content)
    assert caught.value.where == "test" and caught.value.hint


def test_reads_files_gzip_and_standard_input(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(b"one\ntwo\n")
    packed.write_bytes(gzip.compress(b"one\ntwo\n"))
    stdin = io.BytesIO(b"one\ntwo\n")
    datasets = [
        read_dataset(source, PLAIN, stdin=stdin) for source in (str(plain), str(packed), "-")
    ]
    assert datasets[0] == datasets[1] == datasets[2]
    assert len(datasets[0].prompts) == 2


def test_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    damaged = tmp_path / "a.gz"
    damaged.write_bytes(gzip.compress(b"one\ntwo\n")[:-6])
    stdin = io.BytesIO()
    for source in (tmp_path / "absent", tmp_path, damaged):
        with pytest.raises(UsageError) as caught:
            read_dataset(str(source), PLAIN, stdin=stdin)
        assert caught.value.where == str(source)


def level(jobs: RequestSequence, count: int | None = None) -> tuple[list[tuple[int, int]], int]:
    """Send a level; return lines with how often each was sent before, and how many repeat."""
    numbers = jobs.level()
    taken = numbers if count is None else numbers[:count]
    sent = [jobs.job(numbers, number) for number in taken]
    return [(job.prompt.line, job.repeat) for job in sent], jobs.sent(taken)


def test_the_file_is_sent_once_in_order_at_every_level() -> None:
    jobs = RequestSequence(parse("a\nb\nc").prompts, Load())
    assert level(jobs) == ([(1, 0), (2, 0), (3, 0)], 0)
    assert level(jobs) == ([(1, 1), (2, 1), (3, 1)], 3)


def test_a_number_of_requests_goes_on_in_the_file_from_level_to_level() -> None:
    jobs = RequestSequence(parse("a\nb\nc").prompts, Load(requests=2))
    assert level(jobs) == ([(1, 0), (2, 0)], 0)
    assert level(jobs) == ([(3, 0), (1, 1)], 1)
    assert level(jobs) == ([(2, 1), (3, 1)], 2)


def test_repeats_are_numbered_and_equal_lines_count_as_repeats() -> None:
    jobs = RequestSequence(parse("a\na").prompts, Load(repeat=2))
    assert level(jobs) == ([(1, 0), (2, 0), (1, 1), (2, 1)], 3)


def test_time_alone_limits_a_level_with_a_duration() -> None:
    load = Load(duration=5.0)
    assert load.planned(3) is None
    jobs = RequestSequence(parse("a\nb").prompts, load)
    assert level(jobs, 5) == ([(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)], 3)
    assert level(jobs, 2) == ([(2, 2), (1, 3)], 2)


def test_a_trace_of_mooncakes_becomes_prompts_of_its_lengths_and_shared_prefixes() -> None:
    lines = [
        {"timestamp": 27482, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]},
        {"timestamp": 27500, "input_length": 1024, "output_length": 7, "hash_ids": [46, 48]},
    ]
    dataset = parse("\n".join(map(json.dumps, lines)))
    first, second = dataset.prompts
    assert dataset.census.formats == {"mooncake": 2}
    assert (first.at, second.at) == (27.482, 27.5)
    assert first.path == "/v1/completions"
    assert [len(prompt.body["prompt"]) for prompt in (first, second)] == [700, 1024]
    assert first.body["prompt"][:512] == second.body["prompt"][:512]
    assert first.body["prompt"][512:] != second.body["prompt"][512:700]
    assert (first.body["max_tokens"], first.body["ignore_eos"]) == (52, True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"hash_ids": [1], "input_length": 513}, "input_length is 513, not 1 to 512"),
        ({"hash_ids": [1]}, "input_length is None"),
        ({"hash_ids": "1", "input_length": 5}, "hash_ids is not a list of numbers"),
        ({"prompt": "a", "timestamp": "soon"}, "timestamp is 'soon', not a number of ms"),
        ({"prompt": "a", "timestamp": True}, "timestamp is True"),
    ],
)
def test_refuses_a_line_of_a_trace_that_lacks_something(
    line: dict[str, object], reason: str
) -> None:
    dataset = parse(json.dumps(line) + '\n"plain"')
    ((number, said),) = dataset.census.refused
    assert number == 1 and reason in said


def test_a_line_of_a_trace_may_hold_its_text() -> None:
    (prompt,) = parse(
        json.dumps({"text_input": "hello", "timestamp": 1, "output_length": 9})
    ).prompts
    assert (prompt.at, prompt.body["max_tokens"]) == (0.001, 9)


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
