"""Runs on the hosts: what the native runtime does there in one round trip each.

    python3 -I -S - COMMAND ARGUMENTS < the program that native_program.py makes

ARGUMENTS are one JSON object; the answer is one too, with `error` where it failed. Standard
library alone, Python 3.8. Nothing is installed: only the supervisor stays on a host.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from raycluster.hosts.runtimes.native_place import (
    STOPPED,
    SYSTEM_PATH,
    Place,
    ProblemError,
    home,
    is_own,
    place,
    settle,
)
from raycluster.hosts.runtimes.native_processes import UNREAD, alive, boot_id, end, open_sockets

SCHEMA = 1  # of what the supervisor writes
MOST = 1 << 20  # bytes of a file that is read whole
START_LIMIT = 15.0  # seconds
PASSED = (
    *("HOME", "USER", "LOGNAME", "SHELL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)


def where(ask: dict[str, Any]) -> dict[str, Any]:
    """Try to write in the root folder and tell what is there; folders made for that are removed."""
    at = place(ask)
    if not home().is_dir():  # it would be made, with the wrong owner for whoever comes later
        raise ProblemError(f"the home folder {home()} does not exist", "create it for the user")
    new = [each for each in (at.root, *at.root.parents) if not os.path.lexists(str(each))]
    try:
        at.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if ask["root"] and not is_own(at.root):
            hint = "it may be in a folder that others can write to: set `folder` to one of your own"
            raise ProblemError(f"{at.root} belongs to another user", hint)
        at.root.chmod(0o700)
        probe = at.root / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        hint = "give the user a writable home folder"
        raise ProblemError(f"cannot write to {at.root}: {error.strerror}", hint) from error
    space = os.statvfs(str(at.root))
    _remove_empty(at.root, new)
    boot = _no_boot() if ask.get("boot") else ""
    own = at.root / "uv" / "bin"
    search = os.environ.get("PATH", SYSTEM_PATH).split(":")
    places = [*search, str(home() / ".local/bin"), str(own)]
    uv = [f for f in (Path(p) / "uv" for p in places if p) if os.access(str(f), os.X_OK)]
    return {
        "root": str(at.root),
        "temp": str(at.temp),
        "owner": at.owner,
        "home": str(home()),
        "environment": {n: os.environ[n] for n in PASSED if n in os.environ},
        "system_path": SYSTEM_PATH,
        "boot": boot,
        "amd": Path("/dev/kfd").exists(),
        "uv": str(uv[0]) if uv else "",
        "uv_cache": (home() / ".cache/uv").is_dir(),
        "complete": [e.parent.name for e in at.root.glob("env-*/.complete")],
        "free_bytes": space.f_bavail * space.f_frsize,
    }


def _no_boot() -> str:
    """Return why nothing would be started by itself after a reboot, or nothing."""
    from raycluster.hosts.runtimes.native_crontab import no_cron
    from raycluster.hosts.runtimes.native_systemd import lingers

    return "" if lingers() else no_cron()


def _remove_empty(root: Path, new: list[Path]) -> None:
    above = [root.parent] if root.parent.name == ".raycluster" else []
    with contextlib.suppress(OSError):  # there is something in it
        for folder in dict.fromkeys([root, *above, *new]):
            folder.rmdir()


def observe(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell every role's state; changes nothing."""
    folders = sorted((place(ask).root / "roles").glob("*"))
    found = [(folder, _role(folder)) for folder in folders]
    return {"found": [dict(each, owner=_owner(folder)) for folder, each in found if each]}


def _owner(folder: Path) -> str:
    """Return for whom a role was started, "" where that was not noted."""
    try:
        return str(json.loads((folder / "launch.json").read_text()).get("owner", ""))
    except UNREAD:
        return ""


def _role(folder: Path) -> dict[str, Any] | None:
    gone = {"role": folder.name, "health": "stopped", "fingerprint": "", "detail": "never ran"}
    try:
        state = json.loads((folder / "state.json").read_text())
        if state["schema"] != SCHEMA:
            return dict(gone, detail="started by another version of raycluster")
        answer = {n: state[n] for n in ("fingerprint", "versions", "detail", "started")}
        if not all(isinstance(answer[n], str) for n in ("fingerprint", "detail", "started")):
            raise TypeError
        answer["versions"] = {n: str(v) for n, v in answer["versions"].items()}
        answer["health"] = _health(state)
        if state["restarts"]:
            answer["detail"] = "restarts: {}; {}".format(state["restarts"], state["detail"])
    except FileNotFoundError:
        return gone if (folder / "launch.json").exists() else None
    except UNREAD:
        return dict(gone, detail="its state cannot be read")
    return dict(answer, role=folder.name)


def _health(state: dict[str, Any]) -> str:
    if state["boot"] != boot_id() or not alive(state["supervisor"]):
        return "stopped"
    return "running" if alive(state["child"]) else "restarting"


def launch(ask: dict[str, Any]) -> dict[str, Any]:
    """Start the supervisor of a role whose files are in place, and wait for its child."""
    from raycluster.hosts.runtimes.native_crontab import add_lines, remove_lines
    from raycluster.hosts.runtimes.native_systemd import add_unit, lingers

    at = place(ask)
    folder = at.role(ask["role"])
    _mark_stopped(folder, stopped=False)
    by_systemd = ask["start_on_boot"] and lingers()
    if by_systemd:
        add_unit(at, ask["role"])
        remove_lines(at)
    else:
        _supervise(at, folder)
    patience = time.monotonic() + START_LIMIT
    while time.monotonic() < patience:
        state = _role(folder)
        if state and state["health"] != "stopped":
            if state["detail"].startswith("cannot start"):
                raise ProblemError(state["detail"])
            return {"boot": add_lines(at) if ask["start_on_boot"] and not by_systemd else ""}
        time.sleep(0.02)
    raise ProblemError(f"the supervisor did not start within {START_LIMIT:g} s")


def _supervise(at: Place, folder: Path) -> None:
    import subprocess

    command = [sys.executable, "-I", "-S", str(at.root / "supervisor.py"), str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise ProblemError(
            "the supervisor did not start: " + done.stderr.decode().strip().rpartition("\n")[2]
        )


def stop(ask: dict[str, Any]) -> dict[str, Any]:
    """End a role's processes, forget its state, and tell what `where` tells; its files stay.

    Whoever holds the name of our temporary folder keeps it: another is made.
    """
    at = place(ask)
    _mark_stopped(at.role(ask["role"]), stopped=True)
    end(at, ask["role"])
    for name in ("state.json", "launch.json"):
        with contextlib.suppress(FileNotFoundError):
            (at.role(ask["role"]) / name).unlink()
    settle(at)
    return where(ask)


def _mark_stopped(folder: Path, *, stopped: bool) -> None:
    """Say whether a role should run, before it is stopped or started: cron looks every minute."""
    with contextlib.suppress(OSError):  # there is no such role, or the disk is full
        if stopped:
            (folder / STOPPED).touch(mode=0o600)
        else:
            (folder / STOPPED).unlink()


def describe(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell where the description is that a role was started from."""
    at = place(ask)
    launch = at.role(ask["role"]) / "launch.json"
    if not launch.exists():
        hint = "see what is running: raycluster status"
        raise ProblemError("nothing was started here as {}".format(ask["role"]), hint)
    return {"root": str(at.root), "launch": str(launch)}


def logs(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell a role's logs, the oldest first, and the bytes of the last one between which to read."""
    describe(ask)
    folder = place(ask).role(ask["role"])
    log = folder / "log"
    older = [each for each in (folder / "log.2", folder / "log.1") if each.exists()]
    begin, end = 0, log.stat().st_size if log.exists() else 0
    if ask["since"] is not None:
        begin = _size_at(folder / "log.times", time.time() - ask["since"])
    if ask["tail"] is not None:
        begin = max(begin, _last_lines(log, ask["tail"], end))
    whole = ask["since"] is None and ask["tail"] is None
    return {
        "older": [str(each) for each in older] if whole else [],
        "log": str(log),
        "begin": begin,
        "end": end,
    }


def _size_at(times: Path, moment: float) -> int:
    size = 0
    if times.exists():
        for line in times.read_text().splitlines():
            when, _, then = line.partition(" ")
            if float(when) > moment:
                break
            size = int(then)
    return size


def _last_lines(log: Path, count: int, size: int) -> int:
    """Return where the last `count` lines of the first `size` bytes begin."""
    data, begin = b"", size
    while begin and data.count(b"\n") <= count:
        begin = max(0, begin - 65536)
        with log.open("rb") as file:
            file.seek(begin)
            data = file.read(size - begin)
    lines = data.splitlines(keepends=True)
    return size - sum(len(line) for line in lines[len(lines) - min(count, len(lines)) :])


def read(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell what stands in a file under the root, in hexadecimal; nothing where there is none."""
    try:
        with (place(ask).root / ask["path"]).open("rb") as file:
            return {"content": file.read(MOST + 1).hex()}
    except (FileNotFoundError, NotADirectoryError):
        return {"content": ""}


def remove(ask: dict[str, Any]) -> dict[str, Any]:
    """End one role, or all, delete its files, and tell what was removed."""
    from raycluster.hosts.runtimes.native_crontab import remove_lines
    from raycluster.hosts.runtimes.native_systemd import remove_units

    at = place(ask)
    role = ask["role"]
    roles = [role] if role else sorted(f.name for f in (at.root / "roles").glob("*"))
    removed = ["process " + name for name in roles if at.role(name).exists()]
    for name in roles:
        _mark_stopped(at.role(name), stopped=True)
    strays = end(at, role)
    if remove_units(at, role):
        removed.append("systemd unit " + (role or "of each"))
    if not role and remove_lines(at):
        removed.append("crontab lines")
    if strays and not removed:
        removed.append(f"{strays} processes without a folder")
    return {"removed": removed + (_delete_role(at, role) if role else _delete_all(at))}


def _delete_role(at: Place, role: str) -> list[str]:
    files = _files(at.role(role))
    _forget(at.role(role))
    others = [f for f in (at.root / "roles").glob("*") if f.name != role]
    for name in files - set().union(*(_files(f) for f in others)):
        with contextlib.suppress(FileNotFoundError):
            (at.root / name).unlink()
    _delete(at.role(role))
    return []


def _files(folder: Path) -> set[str]:
    try:
        named = json.loads((folder / "launch.json").read_text())["files"]
        return {n for n in named if not n.startswith("/") and ".." not in n.split("/")}
    except UNREAD:
        return set()


def _forget(folder: Path) -> None:
    """Delete first what a role is started from, so that none is in a folder half deleted."""
    with contextlib.suppress(FileNotFoundError):
        (folder / "launch.json").unlink()


def _delete_all(at: Place) -> list[str]:
    for folder in (at.root / "roles").glob("*"):
        _forget(folder)
    folders = (at.root, at.temp) if is_own(at.temp) else (at.root,)
    removed = ["folder " + str(each) for each in folders if _delete(each)]
    if at.root.parent.name == ".raycluster":
        with contextlib.suppress(OSError):
            at.root.parent.rmdir()
    return removed


def _delete(folder: Path) -> bool:
    import shutil

    if not folder.exists():
        return False
    shutil.rmtree(str(folder), ignore_errors=True)
    for below, _, _ in os.walk(str(folder)):  # what is left may lie in folders made read-only
        with contextlib.suppress(OSError):
            Path(below).chmod(0o700)
    shutil.rmtree(str(folder), ignore_errors=True)
    if folder.exists():
        left = next(iter(sorted(folder.rglob("*"), reverse=True)), folder)
        raise ProblemError(f"cannot delete {left}", f"see who owns it: ls -la {left}")
    return True


def sockets(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell the inodes of all sockets that the cluster's processes have open."""
    return {"inodes": open_sockets(place(ask))}


def neighbours(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell the ports of other clusters' processes that run here."""
    ours, found = place(ask).root, []
    for clusters in {home() / ".raycluster", ours.parent}:
        for folder in clusters.glob("*/roles/*"):
            root = folder.parent.parent
            state = _role(folder) if root != ours else None
            if state and state["health"] != "stopped":
                with contextlib.suppress(*UNREAD):
                    ports = json.loads((folder / "launch.json").read_text())["ports"]
                    found.append({"cluster": root.name, "owner": _owner(folder), "ports": ports})
    return {"found": found}


def needs(ask: dict[str, Any]) -> dict[str, Any]:
    """Tell what is wrong with the host for what this runtime does there."""
    from raycluster.hosts.runtimes.native_needs import needs as tried

    return tried(ask)


_ALL = (where, needs, observe, launch, stop, describe, logs, read, remove, sockets, neighbours)
COMMANDS = {each.__name__: each for each in _ALL}


def main() -> None:
    try:
        answer = COMMANDS[sys.argv[1]](json.loads(sys.argv[2]))
    except ProblemError as problem:
        answer = {"error": problem.what, "hint": problem.hint}
    except OSError as error:
        answer = {"error": str(error), "hint": ""}
    print(json.dumps(answer))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
