"""A model hub on 127.0.0.1: the few endpoints of the hub that huggingface_hub uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = 1 << 16
"""Bytes from which the hub keeps a file apart and tells its SHA-256."""


@dataclass
class Hub:
    """One repository and its faults: `status` and `code` refuse who has not `token`, `cuts` breaks
    so many answers half way, `spoiled` files come wrong. `sent` counts bytes by file."""

    repo: str
    files: dict[str, bytes]
    commit: str = "a" * 40
    token: str = ""
    status: int = 0
    code: str = ""
    cuts: int = 0
    spoiled: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    requests: int = 0
    url: str = ""

    def described(self, name: str) -> dict[str, Any]:
        """Return a file as the hub's API describes it."""
        content = self.files[name]
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        lfs = {"size": len(content), "pointerSize": 130}
        sha = hashlib.sha256(content).hexdigest()
        sibling = {"rfilename": name, "size": len(content), "blobId": git}
        entry = {"type": "file", "path": name, "size": len(content), "oid": git}
        if len(content) >= LARGE:
            sibling["lfs"] = {**lfs, "sha256": sha}
            entry["lfs"] = {**lfs, "oid": sha}
        return {
            "sibling": sibling,
            "entry": entry,
            "etag": sha if len(content) >= LARGE else git,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests += 1
        allowed = not hub.token or self.headers.get("Authorization") == f"Bearer {hub.token}"
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.+)?)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if hub.status and not (hub.code == "GatedRepo" and api) and not (hub.token and allowed):
            self._refuse(hub.status, hub.code)
        elif (not api and not file) or (api or file)[1] != hub.repo:  # type: ignore[index]
            self._refuse(401, "RepoNotFound")
        elif (api or file)[3 if api else 2] not in (None, "main", hub.commit):  # type: ignore[index]
            self._refuse(404, "RevisionNotFound")
        elif api and api[4]:
            self._refuse(404, "EntryNotFound")  # there are no folders
        elif api:
            told = [hub.described(name) for name in hub.files]
            siblings = [t["sibling"] for t in told]
            info = {"id": hub.repo, "sha": hub.commit, "siblings": siblings}
            self._json([t["entry"] for t in told] if api[2] == "tree" else info)
        elif file:
            self._file(file[3])

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, name: str) -> None:
        hub = self.hub
        if name not in hub.files:
            return self._refuse(404, "EntryNotFound")
        content = hub.files[name]
        if name in hub.spoiled:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, end = 0, len(content)
        if wanted := self.headers.get("Range"):
            hub.ranges.append(wanted)
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last or end) + 1)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hub.described(name)["etag"]}"')
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = hub.cuts > 0 and len(content) >= LARGE
        body = content[start : start + (end - start) // 2] if cut else content[start:end]
        hub.sent[name] += len(body)
        self.wfile.write(body)
        if cut:
            hub.cuts -= 1
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        return None


@contextmanager
def open_hub(hub: Hub, address: str = "127.0.0.1") -> Iterator[Hub]:
    """Serve until the end of the body."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer((address, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://{address}:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return a folder's files by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
