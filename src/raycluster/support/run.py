"""Gathers from all hosts at once, takes the secrets out, and writes the archive."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycluster import __version__
from raycluster.core.errors import RayclusterError
from raycluster.core.events import Event, Listener
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.observe.diagnosis import Health
from raycluster.observe.liveness import ours
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets
from raycluster.status.json import UNREACHED
from raycluster.support import archive, cluster, host
from raycluster.support.archive import ALL, HOST, ArchiveParts
from raycluster.support.redact import Redactor

SCHEMA = 1
_README = """\
What `raycluster support-bundle` collected; manifest.json lists it and what is missing.
Secrets were replaced by ***: the values of the spec's and the hosts' secrets, also in JSON,
URLs, HTML, escapes, hex, base64 and UTF-16, across line breaks, and anything like a token.
Not replaced: values of fewer than six characters, and what is compressed, encrypted or encoded
twice. Host names, addresses, paths, model names and request data in logs are still here: review
the files before you share them.
"""


@dataclass(frozen=True)
class Bundle:
    """The written archive: its bytes, how many files it holds, and what could not be had."""

    path: Path
    size: int
    files: int
    problems: dict[str, str]


def bundle(
    spec: ClusterSpec,
    fleet: Fleet,
    secrets: Secrets | Exception,
    listen: Listener,
    *,
    path: Path,
    dotenv: Path,
) -> Bundle:
    """Write the archive to `path`. Raises UsageError where that cannot be done."""
    began = time.time()
    listen(Event(spec.cluster.name, "reading the cluster's state"))
    parts, health = cluster.gather(spec, fleet, secrets, dotenv)
    if isinstance(secrets, Exception):
        parts.problems["secrets"] = f"not all of their values are known: {secrets}"
    for name, found in _hosts(spec, fleet, health, listen).items():
        parts.take(found, f"hosts/{name}")
    redact = Redactor(parts.known)
    files = {redact.text(name): redact(content) for name, content in parts.files.items()}
    problems = {name: redact.text(what) for name, what in parts.problems.items()}
    files["errors.txt"] = "".join(f"{n}: {w}\n" for n, w in problems.items()).encode()
    files["README.txt"] = _README.encode()
    manifest = _manifest(spec, parts, files, problems, began) | {"masked": redact.count}
    root = f"{spec.cluster.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(began))}"
    files = {"manifest.json": json.dumps(manifest, indent=2).encode() + b"\n", **files}
    size = archive.write(path, root, files, when=began)
    return Bundle(path, size, len(files), problems)


def _hosts(
    spec: ClusterSpec, fleet: Fleet, health: Health | None, listen: Listener
) -> dict[str, ArchiveParts]:
    """Ask all hosts that were reached; the others have their error alone."""
    limit = min(HOST, ALL // len(spec.hosts))
    found: dict[str, ArchiveParts] = {}
    reachable: list[ResolvedHost] = []
    for each in spec.hosts:
        problem = health.state.hosts[each.name].problem if health else None
        if isinstance(problem, UNREACHED):
            found[each.name] = _failed(each.name, problem, listen)
        else:
            reachable.append(each)

    def gather(connected: Connected) -> ArchiveParts:
        name = ours(spec, connected).host.name
        listen(Event(name, "gathering"))
        parts = host.gather(connected, spec, limit)
        failed = f", {len(parts.problems)} could not be collected" if parts.problems else ""
        listen(Event(name, f"{len(parts.files)} files, {megabytes(parts.size)}{failed}", "done"))
        return parts

    for name, one in fleet.reach(reachable, gather).items():
        found[name] = _failed(name, one, listen) if isinstance(one, RayclusterError) else one
    return found


def _failed(name: str, problem: RayclusterError, listen: Listener) -> ArchiveParts:
    listen(Event(name, problem.what, "failed"))
    parts = ArchiveParts()
    parts.problems["host"] = problem.what
    parts.add("error.txt", f"{problem}\n".encode())
    return parts


def _manifest(
    spec: ClusterSpec,
    parts: ArchiveParts,
    files: dict[str, bytes],
    problems: dict[str, str],
    began: float,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "cluster": spec.cluster.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "raycluster": __version__,
        "files": [
            {
                "path": n,
                "bytes": len(data),
                **({"cut_from": parts.cut[n]} if n in parts.cut else {}),
            }
            for n, data in files.items()
        ],
        "failed": [{"part": name, "error": what} for name, what in problems.items()],
    }


def megabytes(size: int) -> str:
    """Return "1.5 MB"."""
    return f"{size / 1e6:.1f} MB"


def default_path(spec: ClusterSpec, now: float) -> Path:
    """Return the archive's name in the present folder, with the time in UTC."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return Path(f"raycluster-{spec.cluster.name}-{stamp}.tar.gz")
