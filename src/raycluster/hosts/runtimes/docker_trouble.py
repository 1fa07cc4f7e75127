"""Why a host's Docker does not answer: what its shell sees of the socket, said with the next step.

What could not be looked at is left open, never taken for a no.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from raycluster.core.accelerators.host import by_word
from raycluster.core.usernames import wrong_user
from raycluster.hosts.runtimes.docker_socket import DEFAULT, EXAMPLE, NATIVE, SocketChoice

SECONDS = 30.0
_TRY_S = 5  # seconds for one answer of the daemon

LOOK = r"""
LC_ALL=C; export LC_ALL; s=$1
say() { printf '%s %s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')"; }
user=$(id -un 2>/dev/null) && say user "$user"
say uid "$(id -u)"; say groups "$(id -G)"
[ -z "$user" ] || say account "$(id -G -- "$user" 2>/dev/null)"
! getent -s files passwd "$user" >/dev/null 2>&1 || say local
[ ! -e "$s" ] || say exists
[ ! -S "$s" ] || say socket
[ ! -w "$s" ] || say writable
d=$s; while [ ! -e "$d" ] && [ "$d" != / ] && [ "$d" != . ]; do d=$(dirname -- "$d"); done
[ ! -d "$d" ] || [ -x "$d" ] || say closed "$d"
[ ! -e "$s" ] || say owner "$(stat -L -c '%g %a %U:%G' -- "$s" 2>/dev/null)"
! command -v docker >/dev/null || say client
! command -v podman >/dev/null || say podman
for each in "$(PATH="$PATH:/usr/sbin:/sbin:/usr/local/bin:/snap/bin" command -v dockerd)"; do
  [ -z "$each" ] || say daemon "$each"
done
[ ! -e "${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/docker.service" ] || say rootless
if command -v systemctl >/dev/null; then
  what="-p LoadState -p ActiveState -p Result"
  for unit in docker.socket docker.service snap.docker.dockerd.service; do
    say unit "$unit $(timeout 5 systemctl show $what $unit 2>/dev/null)"
  done
fi
! command -v getenforce >/dev/null || say selinux "$(getenforce 2>/dev/null)"
[ ! -S "$s" ] || [ ! -w "$s" ] || {
  if command -v docker >/dev/null; then
    DOCKER_CONFIG=/nonexistent; export DOCKER_CONFIG
    said=$(timeout SECONDS docker -H "unix://$s" version --format '{{.Server.Version}}' 2>&1)
  elif command -v curl >/dev/null; then
    said=$(timeout SECONDS curl -sS --unix-socket "$s" http://docker/_ping 2>&1)
  else
    exit 0
  fi
  say tried "$? $said"
}
true
""".replace("SECONDS", str(_TRY_S))
_UNIT = re.compile(r"([a-z.]+\.(?:service|socket)) (.*)")
_REFUSED = re.compile(
    r"connect\b[^;]*(?:permission denied|not permitted)|permission denied while trying to connect",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ShellFacts:
    """What a host's shell saw; None where that could not be told."""

    user: str = ""
    uid: str = ""
    facts: frozenset[str] = frozenset()
    groups: frozenset[str] | None = None
    account: frozenset[str] | None = None
    gid: str = ""
    mode: int | None = None
    owner: str = ""
    group: str = ""
    closed: str = ""
    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    selinux: str = ""
    tried: int | None = None
    said: str = ""


def seen(text: str) -> ShellFacts:
    """Return what `LOOK` printed as values; what is not of the asked shape is left out."""
    told = by_word(text)
    first = {word: lines[0].strip() for word, lines in told.items()}
    user, account = first.get("user", ""), _numbers(first.get("account", ""))
    owner = re.fullmatch(r"([0-9]+) ([0-7]{1,4}) ([^:]*):(.*)", first.get("owner", ""))
    tried, _, said = first.get("tried", "").partition(" ")
    units = [m for line in told.get("unit", ()) if (m := _UNIT.fullmatch(line.strip()))]
    return ShellFacts(
        user="" if wrong_user(user) or account is None else user,
        uid=first.get("uid", ""),
        facts=frozenset(told),
        groups=_numbers(first.get("groups", "")),
        account=account,
        gid=owner[1] if owner else "",
        mode=int(owner[2], 8) if owner else None,
        owner=owner[3] if owner and not wrong_user(owner[3]) else "",
        group=owner[4] if owner and not wrong_user(owner[4]) else "",
        closed=first.get("closed", ""),
        units={m[1]: dict(p.partition("=")[::2] for p in m[2].split()) for m in units},
        selinux=first.get("selinux", ""),
        tried=int(tried) if tried.isdecimal() else None,
        said=said.strip(),
    )


def _numbers(text: str) -> frozenset[str] | None:
    numbers = text.split()
    return frozenset(numbers) if numbers and all(map(str.isdecimal, numbers)) else None


def explain(told: ShellFacts, place: SocketChoice) -> tuple[str, str] | None:
    """Return what is wrong and the next step; None where Docker answers, or nothing is known."""
    if "uid" not in told.facts:
        return None
    if told.closed:
        return (
            f"{_who(told)} has no access to {told.closed}, where Docker's socket should be",
            f"log in as a user with access, or set {EXAMPLE}; {NATIVE}",
        )
    if "exists" in told.facts and "socket" not in told.facts:
        return (
            f"{place.path} is not a socket{_named(place)}",
            f"set Docker's socket, such as {EXAMPLE}",
        )
    if "socket" not in told.facts:
        what, hint = _absent(told, place)
        return what, f"{hint}{_elsewhere(place)}; {NATIVE}"
    if "writable" not in told.facts:
        what, hint = _forbidden(told, place)
        return what, f"{hint}{_elsewhere(place)}; {NATIVE}"
    return _silent(told, place)


def _absent(told: ShellFacts, place: SocketChoice) -> tuple[str, str]:
    """Return why there is no socket: stopped, failing, or not installed."""
    gone = f"there is no {place.path}{_named(place)}"
    user_unit = "rootless" in told.facts
    for name, unit in told.units.items():
        if unit.get("ActiveState") == "failed" or unit.get("Result") not in (None, "", "success"):
            why = unit.get("Result") or "failed"
            return (
                f"the Docker daemon fails to start ({name}: {why}): {gone}",
                f"see the log on the host: `sudo journalctl -u {name} -n 50`",
            )
    loaded = [name for name, unit in told.units.items() if unit.get("LoadState") == "loaded"]
    if loaded or "daemon" in told.facts:
        snap = loaded == ["snap.docker.dockerd.service"]
        start = "sudo snap start --enable docker" if snap else "sudo systemctl enable --now docker"
        if user_unit:
            start = "systemctl --user enable --now docker"
        elif not told.units:
            start = "sudo dockerd"
        return f"the Docker daemon is not running: {gone}", f"start it: `{start}`"
    if user_unit:
        return (
            f"rootless Docker is not running: {gone}",
            "start it: `systemctl --user enable --now docker`",
        )
    if place.named:
        return gone, "start Docker there, or correct the setting that names the socket"
    if "client" in told.facts:
        return (
            f"the docker command is installed, but not the daemon: {gone}",
            f"install Docker Engine, or set its socket: {EXAMPLE}",
        )
    beside = " (podman is, but cannot replace it)" if "podman" in told.facts else ""
    return f"Docker is not installed{beside}", "install Docker Engine"


def _forbidden(told: ShellFacts, place: SocketChoice) -> tuple[str, str]:
    """Return why the user may not use the socket: groups, an old login, or the socket's mode."""
    who = _who(told)
    may_not = f"{who} has no permission to use Docker at {place.path}"
    user = shlex.quote(told.user) if told.user else "USER"
    if told.mode is None or not told.group:
        return may_not, f"check the socket's group there (`ls -l {shlex.quote(place.path)}`)"
    if not told.mode & 0o020:
        return (
            f"{may_not}: only {told.owner or 'its owner'} has (mode {told.mode:o})",
            "log in as that user, or set a group for the socket: `group` in "
            "/etc/docker/daemon.json",
        )
    if told.groups is not None and told.gid in told.groups:
        return (
            f"{may_not}, although in its group {told.group}",
            "check access control lists and SELinux there (`getfacl`, `ausearch -m avc`)",
        )
    if told.account is not None and told.gid in told.account:
        return (
            f"{may_not}: this login session is older than the membership in group {told.group}",
            "close the login session (`ssh -O exit`, `loginctl terminate-user`), then log in again",
        )
    if told.gid == "0":
        return (
            f"{may_not}: the socket belongs to group root",
            "create a group for it: `sudo groupadd --force docker && sudo systemctl restart "
            f"docker.socket docker`, add {who} (`sudo {_join(told, user, 'docker')}`)",
        )
    group = shlex.quote(told.group)
    return (
        f"{may_not}: it is reserved for group {told.group}",
        f"add {who} to group {told.group}: `sudo {_join(told, user, group)}`, then log in again",
    )


def _join(told: ShellFacts, user: str, group: str) -> str:
    """Return the command; usermod knows accounts of the host itself, not those of a domain."""
    return f"usermod -aG {group} {user}" if "local" in told.facts else f"gpasswd -a {user} {group}"


def _silent(told: ShellFacts, place: SocketChoice) -> tuple[str, str] | None:
    """Return why nobody answers at a socket that the user may use."""
    if told.tried == 0 or told.tried is None:
        return None
    if _REFUSED.search(told.said):
        why = (
            "SELinux is enforcing"
            if told.selinux == "Enforcing"
            else "SELinux or AppArmor may be the cause"
        )
        return (
            f"{_who(told)} has write permission for {place.path}, but is rejected: "
            f"{told.said[:300]}",
            f"{why}: check `sudo ausearch -m avc -ts recent` or `sudo dmesg | grep -i denied` "
            f"there; {NATIVE}",
        )
    unit = told.units.get("docker.service", {})
    if unit.get("ActiveState") in ("failed", "activating") or unit.get("Result") not in (
        *(None, "", "success"),
    ):
        return (
            f"the Docker daemon fails to start (docker.service: {unit.get('Result', 'failed')}); "
            f"only systemd holds {place.path}",
            f"see the log on the host: `sudo journalctl -u docker -n 50`; {NATIVE}",
        )
    restart = (
        "systemctl --user restart docker"
        if _is_own(told, place)
        else ("sudo systemctl restart docker")
    )
    if told.tried == 124:
        return (
            f"the Docker daemon hangs: it accepts connections at {place.path} but does not respond",
            "check its log on the host (`sudo journalctl -u docker -n 50`), and restart it: "
            f"`{restart}`; "
            f"{NATIVE}",
        )
    return (
        f"nothing responds at {place.path}{_named(place)}",
        f"restart the daemon: `{restart}`{_elsewhere(place)}; {NATIVE}",
    )


def _is_own(told: ShellFacts, place: SocketChoice) -> bool:
    return told.uid not in ("", "0") and place.path.startswith(f"/run/user/{told.uid}/")


def _who(told: ShellFacts) -> str:
    return f"user {told.user}" if told.user else "the login user"


def _named(place: SocketChoice) -> str:
    return f", which {place.named} names" if place.named and place.path != DEFAULT else ""


def _elsewhere(place: SocketChoice) -> str:
    if not place.others:
        return ""
    return f"; or set [runtime] socket = {json.dumps(place.others[0])}, which exists"
