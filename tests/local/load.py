"""Completions without pause, streams included, each checked to the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

SHORT, LONG = 4, 400


@dataclass(frozen=True)
class Kind:
    """What a client asks for, again and again."""

    name: str
    tokens: int
    stream: bool


KINDS = (
    Kind("whole", SHORT, stream=False),
    Kind("stream", SHORT, stream=True),
    Kind("whole", SHORT, stream=False),
    Kind("long stream", LONG, stream=True),
)


@dataclass(frozen=True)
class Result:
    """One request: what was wrong with its answer, or "", and when (seconds of the monotonic
    clock) it began and ended."""

    kind: str
    wrong: str
    began: float
    ended: float


class Load:
    """Clients on connections that they keep, one thread each, until `stop`."""

    def __init__(self, url: str, model: str, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.results: list[Result] = []
        self._url, self._model = url, model
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every request come to its end."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def wrong(self) -> list[Result]:
        """The requests that failed or were cut short."""
        return [result for result in self.results if result.wrong]

    def _run(self, kind: Kind) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    wrong = _ask(client, self._model, kind)
                except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                    wrong = f"{type(error).__name__}: {error}"
                self.results.append(Result(kind.name, wrong, began, time.monotonic()))


@contextmanager
def under_load(url: str, model: str) -> Iterator[Load]:
    """Yield the clients at work; all of their requests have ended afterwards."""
    load = Load(url, model)
    load.start()
    try:
        yield load
    finally:
        load.stop()
        print(f"{len(load.results)} requests, of which went wrong: {load.wrong}")


def _ask(client: httpx.Client, model: str, kind: Kind) -> str:
    """Send one request; return what is wrong with its answer, or ""."""
    body = {
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": kind.tokens,
        "ignore_eos": True,
    }
    if not kind.stream:
        answer = client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        told = answer.json()
        return _judge(told["choices"][0]["finish_reason"], told["usage"], kind)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.read()[:200]!r}"
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        return f"truncated after {len(lines)} events"
    *parts, usage = [json.loads(line) for line in lines[:-1]]
    return _judge(parts[-1]["choices"][0]["finish_reason"], usage["usage"], kind)


def _judge(reason: str | None, usage: dict[str, int], kind: Kind) -> str:
    """Return "" when the answer has every token that was asked for."""
    made = usage["completion_tokens"]
    if reason == "length" and made == kind.tokens:
        return ""
    return f"truncated: {made} of {kind.tokens} tokens, {reason}"
