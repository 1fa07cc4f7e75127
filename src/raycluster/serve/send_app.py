"""Hands the app to Serve and waits until it runs: the way without `raycluster`, on the head.

    python -m raycluster.serve.send_app FILE [--dashboard URL] [--timeout SECONDS]

FILE holds the body of Ray's `PUT /api/serve/applications/`; the token's file is named by
RAY_AUTH_TOKEN_PATH. Standard library alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raycluster.serve import peer
from raycluster.serve.rootcause import root_cause

APPLICATIONS = "/api/serve/applications/"
READY_S = 180.0
"""Seconds for the dashboard to take the app; on a new head its parts start one after another."""
PAUSE_S = 1.0
ASK_S = 120.0

Ask = Callable[[str, bytes | None], bytes]
"""Takes a method and a body, returns the answer; raises OSError where there is none."""


class RefusedError(Exception):
    """The app cannot run; the message is the root cause."""


class AnsweredError(OSError):
    """The dashboard answered with an error."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.said = status, said


def main() -> None:
    """Send the app; end with 1 and one line where it does not run."""
    parser = argparse.ArgumentParser(prog="send_app")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dashboard", default="http://127.0.0.1:8265")
    parser.add_argument("--timeout", type=float, default=1800.0)
    options = parser.parse_args()
    try:
        send(_asker(options.dashboard), options.file.read_bytes(), options.timeout)
    except RefusedError as error:
        sys.exit(f"the app is not running: {error}")


def send(
    ask: Ask,
    body: bytes,
    timeout: float,
    *,
    ready: float = READY_S,
    pause: float = PAUSE_S,
    tell: Callable[[str], None] = lambda line: print(line, flush=True),  # noqa: T201 - the log
) -> None:
    """Return when every application runs. Raises RefusedError; times are in seconds."""
    _until(lambda: _taken(ask, body), ready, pause, "the dashboard does not accept the app")
    names = {a["name"] for a in json.loads(body)["applications"]}
    told: dict[str, str] = {}

    def running() -> bool:
        found = json.loads(ask("GET", None))["applications"]
        for name in sorted(names):
            status = str(found.get(name, {}).get("status", "NOT_STARTED"))
            if status == "DEPLOY_FAILED":
                raise RefusedError(f"{name}: {root_cause(_said(found[name]))}")
            if told.get(name) != status:
                told[name] = status
                tell(f"{name}: {status.lower()}")
        return all(told[name] == "RUNNING" for name in names)

    _until(running, timeout, pause, "the applications are not running")


def _taken(ask: Ask, body: bytes) -> bool:
    try:
        ask("PUT", body)
    except AnsweredError as error:
        if error.status in (400, 401, 403, 422):
            raise RefusedError(root_cause(error.said) or str(error)) from None
        raise
    return True


def _until(done: Callable[[], bool], timeout: float, pause: float, what: str) -> None:
    end = time.monotonic() + timeout
    last = ""
    while True:
        try:
            if done():
                return
        except OSError as error:
            last = f": {error}"
        if time.monotonic() > end:
            raise RefusedError(f"{what} within {timeout:g} s{last}")
        time.sleep(pause)


def _said(app: Mapping[str, Any]) -> str:
    deployments = app.get("deployments") or {}
    messages = [d.get("message", "") for d in deployments.values()] + [app.get("message", "")]
    return "\n".join(m for m in messages if m)


def _asker(dashboard: str) -> Ask:
    """Return what asks the dashboard, whose other end must be this user's: it gets the token."""
    token = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    place = urllib.parse.urlsplit(dashboard)
    if place.hostname not in ("localhost", peer.LOOPBACK):
        sys.exit(f"{dashboard}: the head's dashboard is on {peer.LOOPBACK}")
    port = place.port or 8265

    def ask(method: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {Path(token).read_text().strip()}"
        connection = http.client.HTTPConnection(peer.LOOPBACK, port)
        try:
            # in a container of its own the head's processes are out of sight
            connection.sock = peer.connect(port, ASK_S, seen=False)
            connection.request(method, APPLICATIONS, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except peer.TakenError as error:
            raise OSError(str(error)) from None
        except http.client.HTTPException as error:
            raise OSError(f"no response: {error}") from None
        finally:
            connection.close()
        if answer.status >= 400:
            said = content.decode("utf-8", "replace")
            raise AnsweredError(answer.status, said)
        return content

    return ask


if __name__ == "__main__":
    main()
