"""What a person is told: of a model that vLLM cannot serve, and, on a terminal, what goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.test_embedded import CHECKOUT, PROGRAM, Local, link_node, own_ports
from tests.local.test_serve import NO_VLLM
from tests.terminal import (
    CTRL_C,
    ERASE,
    FIRST_SCREEN,
    HIDE,
    HOME,
    OTHER_SCREEN,
    SHOW,
    Terminal,
    on_terminal,
)

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

MODEL = "fallen-back"
CAUSE = "/nowhere/logging.json"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """One head on this machine, whose model asks for `auto` and cannot be served by vLLM."""
    link_node()
    folder = tmp_path_factory.mktemp("told")
    spec = folder / "cluster.toml"
    variables = ", ".join(f'{name} = "{value}"' for name, value in NO_VLLM.items())
    spec.write_text(
        f"""
        [cluster]
        name = "told"
        [runtime]
        kind = "native"
        python = "{CHECKOUT}/.node/bin/python"
        start_on_boot = false
        env = {{ {variables} }}
        [head]
        transport = "local"
        gpus = 0
        [[models]]
        name = "{MODEL}"
        source = "{CHECKOUT}/.model"
        engine = "auto"
        engine_args = {{ max_model_len = 512 }}
        """
    )
    running = Local("told", folder / "home", spec, own_ports())
    running.home.mkdir()
    yield running
    running("down", spec, "--yes")


def terminal(told: Local, *args: str | Path) -> Terminal:
    return on_terminal([PROGRAM, *args], env=told.env())


def assert_drawn(seen: str) -> None:
    """What was drawn is erased, and the cursor, hidden meanwhile, is shown in the end."""
    assert seen.index(HIDE) < seen.rindex(ERASE)
    assert seen.rindex(HIDE) < seen.rindex(SHOW)


def last(seen: str) -> str:
    """Return what stands below the lines that were drawn."""
    return seen[seen.rindex(ERASE) + len(ERASE) :].replace(SHOW, "").replace("\r", "")


def test_up_says_which_engine_serves_and_why(told: Local) -> None:
    done = told("up", told.spec, "--json")
    assert done.returncode == 3, done.stderr
    [proof] = json.loads(done.stdout)["completions"]
    assert (proof["model"], proof["engine"]) == (MODEL, "transformers")
    assert CAUSE in proof["fallback_reason"]
    assert "Paris" in proof["text"]


def test_up_says_it_in_words_too(told: Local) -> None:
    done = told("up", told.spec)
    assert done.returncode == 3, done.stderr
    first, why, answered, *_ = done.stdout.splitlines()
    assert first == "told is up, but degraded: 0 changes"
    said = f"{MODEL}: is served by transformers, not by vLLM: "
    assert why.startswith(f"  ! {said}")
    assert CAUSE in why
    assert answered.startswith(f"  {MODEL} (transformers) responded: 'Paris")
    error, hint = done.stderr.strip().splitlines()[-2:]
    assert error.startswith(f"error: {said}")
    assert CAUSE in error
    assert 'engine = "transformers"' in hint


def test_deploy_says_it_too(told: Local) -> None:
    done = told("deploy", told.spec)
    assert done.returncode == 3, done.stderr
    assert f"{MODEL}: is served by transformers, not by vLLM: " in done.stderr


def test_status_says_it_and_is_degraded(told: Local) -> None:
    done = told("status", told.spec)
    assert done.returncode == 3
    assert done.stdout.startswith("told is degraded\n")
    problem = rf"^  ! {MODEL}: is served by transformers, not by vLLM: .*{CAUSE}"
    assert re.search(problem, done.stdout, re.MULTILINE)
    row = rf"^{MODEL}\s+running,? +transformers,? +1 ready"
    assert re.search(row, done.stdout, re.MULTILINE), done.stdout


def test_status_says_it_to_programs(told: Local) -> None:
    done = told("status", told.spec, "--json")
    assert done.returncode == 3
    status = json.loads(done.stdout)
    assert status["healthy"] is False
    [model] = status["models"]
    assert (model["status"], model["engine"]) == ("running", "transformers")
    assert CAUSE in model["fallback_reason"]
    [problem] = status["problems"]
    assert problem["where"] == MODEL
    assert model["fallback_reason"] in problem["what"]
    assert problem["hint"]


def test_on_a_terminal_up_ends_with_the_result_and_the_cursor_shown(told: Local) -> None:
    status, seen = terminal(told, "up", told.spec, "--only", "head").close()
    assert status == 0, seen
    assert_drawn(seen)
    assert last(seen) == "told is up: 0 changes\n"


def test_watched_status_is_drawn_in_place_until_ctrl_c(told: Local) -> None:
    watching = terminal(told, "status", told.spec, "--watch", "--interval", "0.2")
    watching.read(lambda seen: seen.count("degraded") >= 3)
    watching.press(CTRL_C)
    status, seen = watching.close(seconds=20)
    assert status == 130, seen
    before, _, other = seen.partition(OTHER_SCREEN)
    drawn, _, after = other.rpartition(FIRST_SCREEN)
    assert "degraded" not in before + after
    views = drawn.split(HOME)
    assert sum("degraded" in view for view in views) >= 3
    assert all(view.count("degraded") <= 1 for view in views)
    assert seen.rindex(HIDE) < seen.rindex(SHOW)
    assert "Traceback" not in seen


def test_ctrl_c_at_the_question_of_down_removes_nothing(told: Local) -> None:
    asking = terminal(told, "down", told.spec)
    asking.read(lambda seen: "Remove cluster told from head?" in seen)
    asking.press(CTRL_C)
    status, seen = asking.close(seconds=20)
    assert status == 130, seen
    assert "Traceback" not in seen
    assert told("status", told.spec).returncode == 3


def test_down_on_a_terminal_asks_draws_and_leaves_nothing(told: Local) -> None:
    asking = terminal(told, "down", told.spec)
    asking.read(lambda seen: "Remove cluster told from head?" in seen)
    asking.press("y\n")
    status, seen = asking.close()
    assert status == 0, seen
    assert_drawn(seen)
    assert seen.count(ERASE) > 1, "nothing was drawn anew in place"
    assert re.search("✓.*head.*removed process head", seen)
    assert re.fullmatch(r"told is down: \d+ items removed\n", last(seen))
    assert told.processes() == []
    assert not (told.home / ".raycluster").exists()
