"""Hands the app to Serve and waits until it runs: the way without `raycluster`, on the head.

    python -m raycluster.serve.send_app FILE [--dashboard URL] [--timeout SECONDS]

FILE holds the body of Ray's `PUT /api/serve/applications/`; the token's file is named by
RAY_AUTH_TOKEN_PATH. Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raycluster.serve.rootcause import root_cause

APPLICATIONS = "/api/serve/applications/"
READY_S = 180.0
"""Seconds for the dashboard to take the app; on a new head its parts start one after another."""
PAUSE_S = 1.0

Ask = Callable[[str, bytes | None], bytes]
"""Takes a method and a body, returns the answer; raises OSError where there is none."""


class RefusedError(Exception):
    """The app cannot run; the message is the root cause."""


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
        sys.exit(f"the app does not run: {error}")


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
    _until(lambda: _taken(ask, body), ready, pause, "the dashboard does not take the app")
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

    _until(running, timeout, pause, "the applications do not run")


def _taken(ask: Ask, body: bytes) -> bool:
    try:
        ask("PUT", body)
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")
        if error.code in (400, 401, 403, 422):
            raise RefusedError(root_cause(said) or str(error)) from None
        raise
    return True


def _until(done: Callable[[], bool], timeout: float, pause: float, what: str) -> None:
    end = time.monotonic() + timeout
    last = ""
    while True:
        try:
            if done():
                return
        except OSError as error:  # urllib's errors are of this kind
            last = f": {error}"
        if time.monotonic() > end:
            raise RefusedError(f"{what} within {timeout:g} s{last}")
        time.sleep(pause)


def _said(app: Mapping[str, Any]) -> str:
    deployments = app.get("deployments") or {}
    messages = [d.get("message", "") for d in deployments.values()] + [app.get("message", "")]
    return "\n".join(m for m in messages if m)


def _asker(dashboard: str) -> Ask:
    token = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {Path(token).read_text().strip()}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(method: str, body: bytes | None) -> bytes:
        url = dashboard.rstrip("/") + APPLICATIONS
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
        with opener.open(request, timeout=120) as answer:
            content: bytes = answer.read()
        return content

    return ask


if __name__ == "__main__":
    main()
