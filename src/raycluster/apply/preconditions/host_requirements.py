"""What a host has to be able to do before anything is started on it, tried there.

`check` shows all of it; `up` refuses by the same words before it changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raycluster.apply.context import ApplyContext
from raycluster.apply.firewall import check_firewall
from raycluster.core.accelerators.host import by_word
from raycluster.core.accelerators.values import clean, whole
from raycluster.core.errors import (
    ForwardRefusedError,
    HostError,
    RayclusterError,
    raise_together,
)
from raycluster.core.interfaces import PrepareForecast, Process
from raycluster.core.untrusted import DF, free_bytes, text_of
from raycluster.hosts.fleet import Connected, all_or_raise
from raycluster.hosts.lock import TMP_IS_SAFE
from raycluster.plan.actions import Action, ApplyFirewall, Start
from raycluster.services.ray_node import HEAD
from raycluster.spec import ClusterSpec

FEWEST_FILES, FEW_FILES = 1024, 8192
"""Open files of one process: with fewer Ray does not start; with fewer it may run short."""
SMALL_SHM = 1 << 30
ROOM = 1 << 20
"""Free bytes with which a small file that cannot be written has another cause."""
INPUT = b"raycluster\n" * 1000

# Arguments: the folder of native processes, in the home folder if relative, or "" where none run,
# and folders that are only written to. A folder that is not there yet is tried where it will be
# made. Everything is removed again.
_TRY = f"""{DF}
umask 077
lacks=
for each in chmod df dirname find head id mktemp rm tail wc; do
  command -v "$each" >/dev/null || lacks="$lacks $each"
done
if [ -n "$lacks" ]; then echo "lacks$lacks"; exit 0; fi
echo input $(($(wc -c)))
above() {{
  up=$1
  while [ ! -e "$up" ] && [ ! -L "$up" ] && [ "$up" != / ]; do up=$(dirname "$up"); done
}}
written() {{
  above "$2"
  if [ ! -d "$up" ]; then echo "$1 folder $up"; return 1; fi
  made=$(mktemp -d "$up/.raycluster-XXXXXX" 2>&1) || {{ echo "$1 write $made"; return 1; }}
  size=$({{ head -c 65536 /dev/zero >"$made/file" && wc -c <"$made/file"; }} 2>/dev/null)
  if [ $((${{size:-0}})) -eq 65536 ]; then return 0; fi
  echo "$1 write $(df -Pk "$up" 2>&1 | tail -n 1)"
  rm -rf "$made"; return 1
}}
runs() {{
  printf '#!/bin/sh\\nexit 0\\n' >"$made/run" && chmod 700 "$made/run"
  said=$("$made/run" 2>&1) || {{ echo "$1 run $up"; rm -rf "$made"; return 1; }}
}}
binds() {{
  command -v python3 >/dev/null || return 0
  said=$(python3 -I -S -c 'import socket, sys
try:
    socket.socket(socket.AF_UNIX).bind(sys.argv[1])
except OSError as error:
    sys.exit(error.strerror)' "$made/s" 2>&1) || echo "$1 socket $up: $said"
}}
place=$1; shift
{TMP_IS_SAFE} || echo "tmp others may rename what is in /tmp"
if [ -n "$place" ]; then
  home=${{HOME-}}
  if [ -z "$home" ]; then echo home unset
  elif [ ! -d "$home" ]; then echo "home missing $home"
  else
    case $place in /*) ;; *) place=$home/$place ;; esac
    for folder in "$home" "$place"; do
      written place "$folder" && runs place && rm -rf "$made" || break
    done
  fi
  written tmp /tmp && runs tmp && binds tmp && rm -rf "$made"
  written shm /dev/shm && rm -rf "$made"
  echo "shared $(df -Pk /dev/shm 2>&1 | tail -n 1)"
  echo "files $(ulimit -Hn)"
else
  written tmp /tmp && rm -rf "$made"
fi
for folder; do written folder "$folder" && rm -rf "$made"; done
true
"""


@dataclass(frozen=True)
class Tried:
    """One thing that was tried on a host: what came of it, and the cure where it `failed`."""

    subject: str
    text: str
    hint: str = ""
    failed: bool = True


def tried(spec: ClusterSpec, connected: Connected) -> tuple[Tried, ...]:
    """Try what is needed of a host before something of the cluster can be started there.

    Raises HostError where nothing can be tried.
    """
    return (*_storage(spec, connected), *_forwards(spec, connected), *_rules(spec, connected))


def refuse_unfit(work: ApplyContext, actions: Sequence[Action]) -> None:
    """Raise HostError where a host cannot do what the actions need; nothing has been changed."""
    starts: dict[str, list[Process]] = {}
    for action in actions:
        if isinstance(action, Start):
            starts.setdefault(action.host, []).append(action.process)
    rules = {a.host for a in actions if isinstance(a, ApplyFirewall) and a.rules} - starts.keys()

    def look(connected: Connected) -> None:
        spec, name = work.spec, connected.host.name
        found = tried(spec, connected) if name in starts else _rules(spec, connected)
        wrong: list[RayclusterError] = [
            HostError(each.text, where=name, hint=each.hint) for each in found if each.failed
        ]
        if name in starts and not any(e.failed and e.subject == "storage" for e in found):
            try:
                connected.runtime.verify(starts[name])
            except HostError as error:
                wrong.append(error)
        raise_together(wrong)

    all_or_raise(work.fleet.each(sorted({*starts, *rules}), look))


def _storage(spec: ClusterSpec, connected: Connected) -> Iterator[Tried]:
    host = connected.host
    native = host.runs_own_programs
    place = f"{host.folder}/{spec.cluster.name}" if native else ""
    spooled = not native and (host.runtime.archive or spec.distribution.images == "peer")
    folders = [spec.distribution.folder] if spooled else []
    done = connected.transport.run(("sh", "-c", _TRY, "try", place, *folders), input=INPUT)
    told = by_word(text_of(done, "try what is needed of the host", host.name))
    if lacks := told.get("lacks"):
        hint = "install them (coreutils and findutils, or busybox), and check PATH"
        yield Tried("storage", f"the host lacks programs: {clean(lacks[0])}", hint)
        return
    wrong = [_came_whole(told), *map(_home, told.get("home", ()))]
    wrong += [_folder(line, "home") for line in told.get("place", ())]
    wrong += [_folder(line, "/tmp") for line in told.get("tmp", ())]  # noqa: S108
    wrong += [_folder(line, "/dev/shm") for line in told.get("shm", ())]  # noqa: S108
    wrong += [_folder(line, "distribution.folder") for line in told.get("folder", ())]
    wrong += [*map(_shared, told.get("shared", ())), *map(_files, told.get("files", ()))]
    found = [each for each in wrong if each]
    yield from found
    if not any(each.failed for each in found):
        what = "home, /tmp and /dev/shm are writable and allow programs to run"
        yield Tried("storage", what if native else "/tmp is writable", failed=False)  # noqa: S108


def _came_whole(told: Mapping[str, list[str]]) -> Tried | None:
    if told.get("input") == [str(len(INPUT))]:
        return None
    return Tried(
        "storage",
        "input sent to a command arrives incomplete",
        "check the login shell's start-up files, and ForceCommand in sshd_config",
    )


def _home(line: str) -> Tried:
    word, _, path = line.partition(" ")
    if word == "unset":
        what, hint = (
            "HOME is not set",
            "make sure that the login shell's start-up files do not unset HOME",
        )
    else:
        what = f"the home folder {clean(path)} does not exist"
        hint = "create it: sudo mkhomedir_helper USER, or usermod -d FOLDER USER"
    return Tried("storage", what, hint)


_FULL = re.compile("no space left|quota exceeded", re.IGNORECASE)
_NO_ROOM = "free space or inodes, or raise quota or limit: `df -h`, `df -i`, `quota`, `ulimit -f`"


def _folder(line: str, name: str) -> Tried:
    """Return what is wrong with a folder, of which the host tells a word and its own words."""
    word, _, said = line.partition(" ")
    said = clean(said)
    if word == "write":
        return _unwritten(said, name)
    if word == "folder":
        return Tried(
            "storage", f"{said} is not a folder", "replace it with a folder, or with a link to one"
        )
    if word == "run":
        return Tried(
            "storage",
            f"programs in {said} cannot be run",
            f"mount it without `noexec`: sudo mount -o remount,exec $(findmnt -nT {said} -o TARGET)"
            ", and in /etc/fstab",
        )
    if word == "socket":
        hint = "use a file system that supports Unix sockets, such as ext4, xfs or tmpfs"
        return Tried("storage", f"cannot create Unix sockets in {said}", hint)
    return Tried("storage", clean(line), "let root own /tmp, with mode 1777: sudo chmod 1777 /tmp")


def _unwritten(said: str, name: str) -> Tried:
    """Return why a folder takes no file, of which `df` tells, or who tried it."""
    left = free_bytes(f" {said}")
    if left is None:
        what = f"cannot write to {name}: {said.rpartition(': ')[2]} ({said})"
        path = "~" if name == "home" else name
        hint = (
            f"check its owner and mount options: ls -ld {path}; findmnt -T {path} (it needs `rw`)"
        )
        return Tried("storage", what, _NO_ROOM if _FULL.search(said) else hint)
    place = said.rpartition(" ")[2]
    if left > ROOM:
        what = f"{place} takes no further file, although {left >> 10} KiB are free"
        return Tried("storage", what, _NO_ROOM)
    full = f"{place} is full: {left >> 10} KiB are free"
    return Tried("storage", full, "free some space there: `df -h`, `df -i`")


def _shared(line: str) -> Tried | None:
    free = free_bytes(f" {line}")
    if free is None or free >= SMALL_SHM:
        return None
    hint = "make it larger: sudo mount -o remount,size=50% /dev/shm"
    what = f"/dev/shm has {free >> 20} MiB free, so Ray stores objects on disk; {hint}"  # noqa: S108
    return Tried("shared memory", what, hint, failed=False)


def _files(line: str) -> Tried | None:
    most = whole(line)
    if most is None or most >= FEW_FILES:
        return None
    hint = "raise it in /etc/security/limits.conf: `USER - nofile 65536`"
    if most < FEWEST_FILES:
        what = f"a process may open {most} files, but Ray needs at least {FEWEST_FILES}"
        return Tried("open files", what, hint)
    what = (
        f"a process may open {most} files, which may not be enough for many concurrent "
        f"requests; {hint}"
    )
    return Tried("open files", what, hint, failed=False)


def _forwards(spec: ClusterSpec, connected: Connected) -> Iterator[Tried]:
    """Try the ways over the connection to the ports that `up`, and later `status`, ask."""
    ports = (spec.ports.gcs, spec.ports.api) if connected.host.role == HEAD else (spec.ports.api,)
    for port in ports:
        try:
            connected.transport.connect(("127.0.0.1", port), timeout=5).close()
        except ForwardRefusedError as error:
            needed = connected.host.role == HEAD
            more = "" if needed else f": `status` cannot query what runs here; {error.hint}"
            yield Tried("forwarding", error.what + more, error.hint, failed=needed)
            return
        except HostError:
            continue  # nothing listens there yet
    yield Tried("forwarding", "ports of the host can be reached", failed=False)


def _rules(spec: ClusterSpec, connected: Connected) -> Iterator[Tried]:
    if spec.firewall.manage:
        try:
            check_firewall(connected)
        except HostError as error:
            yield Tried("firewall", error.what, error.hint)
        else:
            yield Tried("firewall", "rules can be written", failed=False)


def at_boot(seen: PrepareForecast) -> Tried | None:
    """Return what keeps processes from starting by themselves after a reboot, as it was seen."""
    if not seen.boot:
        return None
    hint = "install cron, or enable lingering for the user's systemd: loginctl enable-linger"
    what = f"nothing restarts automatically after a reboot or a kill: {clean(seen.boot)}; {hint}"
    return Tried("reboot", what, hint, failed=False)
