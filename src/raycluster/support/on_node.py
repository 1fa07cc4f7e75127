"""Runs inside a node of Ray: writes a tar of what tells how it is, cut to a size.

    python -c PROGRAM '{"file": 262144, "all": 4194304}'

Sizes are in bytes; of a file that is larger the end is taken, from a line's beginning on. The
member `known` holds the secrets that are there, so that they can be taken out of all the rest; it
is for that alone. Standard library alone, Python 3.8.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from importlib import metadata
from pathlib import Path

# What matters most comes first, and gets the room.
WANTED = (
    *("gcs_server.*", "raylet.*", "serve/*", "events/*", "monitor.*", "dashboard.*"),
    *("dashboard_ServeHead.log", "dashboard_agent.*", "runtime_env_agent.*", "agent-*"),
)
REPLICA = b":actor_name:ServeReplica:"


def end_of(path: Path, limit: int) -> bytes:
    """Return the last bytes of a file, from the beginning of a line on."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            return file.read(limit)
        file.seek(size - limit)
        return file.read(limit).partition(b"\n")[2]


def wanted(folder: Path) -> list[Path]:
    """Return the files of a session's logs, what matters most first, the newest first of a kind."""
    kinds = [sorted(folder.glob(pattern), key=_age) for pattern in WANTED]
    workers = [path for path in folder.glob("worker-*.[oe][ur][tr]") if _is_replicas(path)]
    kinds.insert(2, sorted(workers, key=_age))
    files = [path for kind in kinds for path in kind if path.is_file()]
    return [path for path in dict.fromkeys(files) if path.stat().st_size]


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _is_replicas(path: Path) -> bool:
    with path.open("rb") as file:
        return REPLICA in file.read(65536)


def packages() -> str:
    """Return what is installed, a line each."""
    found = {str(d.metadata["Name"]): d.version for d in metadata.distributions()}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower))


def known(root: Path) -> list[str]:
    """Return the secrets of the cluster's folder."""
    values = []
    try:
        values.append((root / "token").read_text().strip())
        values += [str(v) for v in json.loads((root / "secrets.json").read_text()).values()]
    except (OSError, ValueError, AttributeError):
        pass
    return values


def main() -> None:
    limits = json.loads(sys.argv[1])
    temp = os.environ.get("RAY_TMPDIR") or "/tmp"  # noqa: S108 - where Ray puts it
    session = Path(temp) / "ray" / "session_latest"
    logs = (session / "logs").resolve()
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        add("known", json.dumps(known(Path(os.environ.get("RAYCLUSTER_ROOT", "/none")))).encode())
        add("environment.json", json.dumps(dict(os.environ)).encode())
        add("packages.txt", packages().encode())
        left, out = limits["all"], []
        for path in wanted(logs) if logs.is_dir() else ():
            content = end_of(path, min(limits["file"], left))
            left -= len(content)
            if content:
                add(f"ray/{path.relative_to(logs)}", content)
            if len(content) < path.stat().st_size:
                out.append(f"{path.relative_to(logs)}: {path.stat().st_size} bytes in all")
        add("cut.txt", "\n".join(out).encode())


if __name__ == "__main__":
    main()
