"""All that commands print, on a real terminal, where every word of a host commands it."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from raycluster import cli
from raycluster.apply.converge import Outcome
from raycluster.apply.smoke_test import Fallback, Proof
from raycluster.batch.console import batch_console
from raycluster.bench.report import render
from raycluster.check.hosts import Finding
from raycluster.commands._console import err, out, print_json
from raycluster.core.errors import HostError
from raycluster.core.events import Event, Kind
from raycluster.core.interfaces import Secret
from raycluster.core.printable import printable
from raycluster.drill.load import DrillRequest
from raycluster.drill.report import Report
from raycluster.hosts import session
from raycluster.logs.lines import View, pattern
from raycluster.plan.actions import Deploy, Remove
from raycluster.plan.rollout import Rollout
from raycluster.report.forecast import forecast_view
from raycluster.report.outcome import (
    checks_json,
    checks_view,
    outcome_json,
    outcome_text,
    plan_json,
    plan_text,
)
from raycluster.report.progress import progress
from raycluster.status.json import status_json
from raycluster.status.live import Ages, print_each, watch
from raycluster.status.view import status_view
from tests.terminal import on_terminal
from tests.unit.bench.level import requests, summary
from tests.unit.report.test_forecast import WHOLE
from tests.unit.status.standing import broken, spec, whole

T = TypeVar("T")

HOSTILE = (
    "M\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[38;5;201m\x1b]8;;http://evil\x1b\\\x9b5n\x9d0;t\x9c"
    "\x7f\x00\x08\x0b\u202e\u2066\u200b\ufeff\u2028\u2029\ud800\rover"
    "[link=http://evil]l[/link][red][/][/b]:smile:\\"
)
OWN = re.compile(r"\x1b\[(?:\d(?:;\d\d?)*m|\d\dm|\?25[lh]|2K|\d?A|\?1049[lh]|H)")
"""What we say to a terminal: plain colours, and where a live display is drawn again."""
CALLED = ("state", "status", "kind", "role", "transport", "runtime")
"""Fields whose words are ours."""


def poisoned(value: T, name: str = "") -> T:
    """Return the value with a hostile end at each of its texts, however deep."""
    return cast(T, _poisoned(value, name))


def _poisoned(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value if name in CALLED else value + HOSTILE
    if isinstance(value, tuple | list):
        return type(value)(_poisoned(each, name) for each in value)
    if isinstance(value, HostError):
        return type(value)(value.what + HOSTILE, where=value.where, hint=value.hint + HOSTILE)
    if isinstance(value, Mapping):
        return {key: _poisoned(each, key) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type) and type(value).__name__ != "Latency":
        parts = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(value, **{name: _poisoned(each, name) for name, each in parts.items()})
    return value


SPEC = spec(cluster={"name": "q"})
ACTIONS = (
    Remove("h" + HOSTILE, None, HOSTILE),
    Deploy(Rollout((), {HOSTILE: HOSTILE}), (HOSTILE,)),
)
PROOF = poisoned(Proof("m", "vllm", "Paris", Fallback("transformers", "x"), {"load": 2.0}))
OUTCOME = Outcome(ACTIONS, (PROOF,), Secret("Grafana" + HOSTILE))
FINDINGS = [poisoned(Finding("h", "GPUs", passed, "NVIDIA", "do")) for passed in (True, False)]
DRILL = Report("q", "worker", HOSTILE, 1.0, (DrillRequest(0.0, 1.0, 503, HOSTILE),), 1, 2, 3, 4, 5)
BENCH = summary(requests(20, failed=0.5, detail=HOSTILE), model=HOSTILE)
STANDINGS = [poisoned(whole()), poisoned(broken())]


def views() -> None:
    """Print what commands end with."""
    console = out()
    for shown in (plan_text(ACTIONS), outcome_text(SPEC, OUTCOME, private=True), DRILL.text()):
        console.print(shown)
    for view in (checks_view(FINDINGS), forecast_view(poisoned(WHOLE)), render(BENCH, plain=False)):
        console.print(view)
    for standing in STANDINGS:
        console.print(status_view(standing), end="")
        console.print(status_view(standing, screen=True))
    console.print(Ages(2.0).line(0.0, looking=True))


def objects() -> None:
    """Print what programs read; a line before each."""
    for value in (
        plan_json(SPEC, ACTIONS),
        outcome_json(SPEC, OUTCOME),
        checks_json(SPEC, FINDINGS),
        DRILL.to_json(),
        BENCH.to_json(),
        *map(status_json, STANDINGS),
    ):
        sys.stdout.write("JSON\n")
        print_json(value)


def live() -> None:
    """Say what happens on the way: on a terminal, and as plain lines."""
    kinds: tuple[Kind, ...] = ("step", "note", "done", "failed")
    with progress(err()) as listen:
        for kind in kinds:
            listen(Event(f"{kind}{HOSTILE}", HOSTILE * 40, kind))
        sys.stderr.write(HOSTILE + "\n")  # a library's word in between
        time.sleep(0.3)  # a drawing or two
    with batch_console(sys.stdout, err()) as said:
        said.tell(HOSTILE)
        said.progress(HOSTILE * 40)
    looks = iter([STANDINGS[0], HostError(HOSTILE), STANDINGS[1], KeyError(HOSTILE)])

    def look() -> Any:
        seen = next(looks, KeyboardInterrupt())
        if isinstance(seen, BaseException):
            raise seen
        return seen

    for show in (watch, print_each):
        try:
            show(look, out(), 0.0)
        except (KeyboardInterrupt, KeyError):
            continue


def logs() -> None:
    """Write lines of logs as `logs` does."""
    line = HOSTILE.replace("\x1b[38;5;201m", "").encode("utf-8", "surrogatepass") + b"\x9b\xff\n"
    for grep in (None, pattern("over"), pattern(".", ignore_case=True)):
        view = View(prefix=True, colour=True, grep=grep)
        shown = view.line(HOSTILE, b"\x1b[31mred" + line)
        sys.stdout.buffer.write(shown or b"")
        sys.stdout.buffer.flush()


def failing() -> None:
    """End as a host's words may end a command."""
    raise HostError(HOSTILE, where=HOSTILE, hint=HOSTILE)


def unforeseen() -> None:
    """End by an error that nobody foresaw."""
    raise LookupError(HOSTILE)


ALL: tuple[Callable[[], None], ...] = (views, objects, live, logs, failing, unforeseen)


def main() -> None:
    """Be the program, with the command that the first argument names."""
    for command in ALL:
        cli.app.command(command.__name__)(command)
    cli.main()


@pytest.mark.parametrize("command", [each.__name__ for each in ALL])
def test_no_word_of_a_host_commands_a_terminal(command: str) -> None:
    code = "from tests.unit.commands.test_terminal import main; main()"
    argv = (sys.executable, "-c", code, command)
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    status, seen = on_terminal(argv, env=env, cwd=Path(__file__).parents[3]).close()
    assert status == (command in ("failing", "unforeseen"))
    assert "M" in seen and "\rover" not in seen
    rest = OWN.sub("", seen).replace("\r", "")
    assert printable(rest, None) == rest
    assert "\ufffd" not in rest
    if command == "objects":
        for text in rest.split("JSON\n")[1:]:
            assert "over[link" in str(json.loads(text))
    elif command != "live":
        assert "[link=http://evil]" in re.sub(r"\s", "", rest)  # shown, and not obeyed


def test_a_question_shows_what_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("getpass.getpass", asked.append)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    session.TerminalPrompt()(HOSTILE)
    assert asked == [printable(HOSTILE)]


def test_what_is_waited_for_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    session.TerminalPrompt().tell(HOSTILE)
    assert capsys.readouterr().err == f"{printable(HOSTILE)}\n"
