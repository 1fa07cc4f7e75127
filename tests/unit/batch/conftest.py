"""The scripted endpoint as a fixture, and a run against it in this process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raycluster.batch.online import Connect, online
from raycluster.batch.report import BatchSummary
from raycluster.batch.run import BatchConsole, BatchOptions, run
from raycluster.openai_client.target import Target
from raycluster.serve.asking.retrying_client import Tries

QUICK = Tries(timeout=20.0, backoff=0.01)


@dataclass
class Server:
    """A running endpoint; `finish` ends it and returns its requests in their order."""

    process: subprocess.Popen[str]
    log: Path
    url: str

    def finish(self) -> list[dict[str, Any]]:
        self.process.communicate(timeout=20)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


Serve = Callable[..., Server]
SERVER = "tests.unit.batch.server"
CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start an endpoint that gives faults to so many percent of the questions."""
    with ExitStack() as stack:

        def start(faults: float = 0.0, delay: float = 0.0) -> Server:
            argv = [sys.executable, "-m", SERVER, str(tmp_path / "log"), str(faults), str(delay)]
            process = stack.enter_context(
                subprocess.Popen(
                    argv, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            port = int(process.stdout.readline())
            return Server(process, tmp_path / "log", f"http://127.0.0.1:{port}")

        yield start


@dataclass
class Batch:
    """An input and an output in a folder, and runs from one to the other."""

    folder: Path
    told: list[str] = field(default_factory=list)
    said: io.StringIO = field(default_factory=io.StringIO)

    @property
    def input(self) -> Path:
        return self.folder / "in.jsonl"

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    def write(self, lines: list[Any]) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.input.write_text("".join(f"{text}\n" for text in texts))

    def ask(self, *questions: str) -> None:
        self.write([{"prompt": question} for question in questions])

    def run(self, url: str | Connect, **options: Any) -> BatchSummary:
        connect = to(url) if isinstance(url, str) else url
        chosen = BatchOptions(self.input, self.output, **{"tries": QUICK, **options})
        return run(
            chosen, online(connect), BatchConsole(self.said, self.told.append, lambda line: None)
        )

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """An empty folder for a batch."""
    return Batch(tmp_path)


def to(url: str) -> Callable[[], AbstractContextManager[tuple[Target, Callable[[], None]]]]:
    @contextmanager
    def connect() -> Iterator[tuple[Target, Callable[[], None]]]:
        yield Target(url, ""), lambda: None

    return connect


def nowhere() -> AbstractContextManager[tuple[Target, Callable[[], None]]]:
    """Fail the test: nothing was to be sent."""
    pytest.fail("the endpoint was reached")
