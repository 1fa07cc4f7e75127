"""Between this host's Docker and a file.

As a program, `python3 docker_image_staging.py save|load SOCKET FILE [IMAGE]`.

Sent to hosts: it needs a Python 3.8 and its standard library. Every line of the output is JSON:
`here` bytes, the `size` and `digest` (SHA-256) of what was saved, `loaded`, or `error`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

CHUNK = 1 << 20
EVERY_S = 0.5


class Daemon(http.client.HTTPConnection):
    """A connection to the daemon's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", blocksize=CHUNK)
        self._path = path

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def save(daemon: Daemon, file: Path, image: str) -> None:
    """Write an image's archive; an earlier one is used again."""
    daemon.request("GET", f"/images/{quote(image, safe='')}/get")
    answer = daemon.getresponse()
    if answer.status != 200:
        say(error=_message(answer.read()))
        return
    part = file.with_name(file.name + ".saving")
    digest, here, told = hashlib.sha256(), 0, time.monotonic()
    with part.open("wb") as out:
        while data := answer.read(CHUNK):
            digest.update(data)
            out.write(data)
            here += len(data)
            if time.monotonic() - told > EVERY_S:
                say(here=here)
                told = time.monotonic()
    part.replace(file)
    say(size=here, digest=digest.hexdigest())


def load(daemon: Daemon, file: Path) -> None:
    """Give an archive to Docker."""
    size = file.stat().st_size
    headers = {"Content-Type": "application/x-tar", "Content-Length": str(size)}
    with file.open("rb") as body:
        daemon.request("POST", "/images/load?quiet=1", body=body, headers=headers)
    answer = daemon.getresponse()
    text = answer.read()
    if answer.status != 200:
        say(error=_message(text))
        return
    for line in text.splitlines():
        if line.startswith(b"{") and (problem := json.loads(line).get("error")):
            say(error=problem)
            return
    say(loaded=size)


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.decode("utf-8", "replace").strip() or "Docker rejects the request"


def say(**line: Any) -> None:  # noqa: ANN401  # JSON
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    os.umask(0o077)
    command, path, file, *rest = sys.argv[1:]
    try:
        if command == "save":
            save(Daemon(path), Path(file), rest[0])
        else:
            load(Daemon(path), Path(file))
    except (OSError, http.client.HTTPException) as error:
        say(error=f"Docker: {error}")


if __name__ == "__main__":
    main()
