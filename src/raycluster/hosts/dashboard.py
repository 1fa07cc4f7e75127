"""The way to Ray's dashboard: the token goes to the head's own process, or to nobody.

Whoever holds the port while the head is away would be told the token otherwise. So a request is
handed to a program inside of the head's box, which sends it only over a connection whose other end
is a process there (`serve/peer.py`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import suppress

import httpx

from raycluster.core.accelerators.host import by_word
from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError, PortInUseError
from raycluster.core.interfaces import PYTHON, Found, Secret, Shell, Transport
from raycluster.core.untrusted import text_of
from raycluster.hosts.fleet import Connected
from raycluster.hosts.http import AskError, asking_client
from raycluster.serve import peer
from raycluster.services.ray_node import HEAD

READABLE = """[ -r /proc/net/tcp ] && command -v awk >/dev/null || {
  echo "cannot tell which programs listen: awk and /proc/net/tcp are needed" >&2; exit 1; }
"""
"""Ends a script that could not tell ports without a listener from ports that it cannot see."""
LISTENING = f"""{READABLE}awk '$4 == "0A" {{n = split($2, a, ":"); print "listen", a[n], $8}}' \
/proc/net/tcp /proc/net/tcp6 2>/dev/null
"""
"""Prints each port of the host on which somebody listens, in hexadecimal, and the user's number."""
HOLDERS = f"""{LISTENING}
echo me "$(id -u)"
awk '$4 == "0A" {{print $8}}' /proc/net/tcp /proc/net/tcp6 2>/dev/null | sort -u | \
while read -r uid; do echo user "$uid" "$(id -nu "$uid" 2>/dev/null)"; done
"""
"""Prints that, the own user's number, and the names of all these users."""
TRIES = 5
START_S = 10.0
"""Seconds for a program to start beside a busy node, on top of those of its request."""


def dashboard(
    connected: Connected, port: int, token: Secret, *, timeout: float = 30.0
) -> httpx.Client:
    """Return a client of the dashboard; `connected` is the head's host, `timeout` in seconds.

    Its requests raise PortInUseError where the port is held by anybody but the head.
    """
    shell: Shell | None = None

    def ask(request: bytes, seconds: float) -> bytes:
        nonlocal shell
        what = request.partition(b" HTTP")[0][:200].decode("latin-1")
        source = inspect.getsource(peer)
        argv = (*PYTHON, "-I", "-S", "-c", source, str(port), str(seconds), what)
        try:
            shell = shell or connected.runtime.inside(HEAD)
            done = shell.run(argv, input=request, timeout=seconds + START_S)
        except HostError as error:
            raise AskError(error.what, where=connected.host.name) from error
        if done.exit_code == peer.TAKEN:
            said = done.error_text
            raise held(connected, port, f"uid {clean(said, 12)}")
        if done.exit_code and not done.stdout:
            said = done.error_text.rpartition("\n")[2]
            raise AskError(clean(said, 200), where=connected.host.name)
        return done.stdout

    return asking_client(ask, port, token=token.reveal(), timeout=timeout)


def held(connected: Connected, port: int, holder: str) -> PortInUseError:
    """Return the error for a port of the head that another program holds."""
    with suppress(HostError):  # the number alone then
        holder = " and ".join(holders(connected.transport, port)) or holder
    return PortInUseError(
        f"port {port} is in use by {holder}, not by the head",
        where=connected.host.name,
        hint="stop the program that listens there, or set `ports.dashboard`; then raycluster up",
    )


def holders(transport: Transport, port: int) -> tuple[str, ...]:
    """Return who listens on a port of the host, the own user left out. Raises HostError."""
    done = transport.run(("sh", "-c", HOLDERS))
    told = by_word(text_of(done, "check which program listens", transport.address))
    me = "".join(told.get("me", ()))
    names = who_listens(told)
    return tuple(names[each] for each in sorted(names) if each[0] == port and each[1] != me)


def who_listens(told: Mapping[str, list[str]]) -> dict[tuple[int, str], str]:
    """Return the users' names, in words, by port and number, from what HOLDERS printed."""
    users = dict(line.partition(" ")[::2] for line in told.get("user", ()))
    found = {}
    for line in told.get("listen", ()):
        if match := re.fullmatch(r"([0-9A-F]{4}) ([0-9]{1,10})", line):
            port, uid = match.groups()
            name = clean(users.get(uid, ""), 40)
            found[int(port, 16), uid] = f"{name} (uid {uid})" if name else f"uid {uid}"
    return found


def taken(connected: Connected, port: int) -> PortInUseError | None:
    """Return the error where another user holds the dashboard's port, as far as can be told.

    A head that runs is asked, without the token; beside one that does not, whoever listens is
    another. None where there is no head. Raises HostError.
    """
    for _ in range(TRIES):
        found, others = _head(connected), holders(connected.transport, port)
        if found is None or not others:
            return None
        if found.health != "running":  # one that comes back now listens seconds later
            return held(connected, port, others[0])
        with dashboard(connected, port, Secret(""), timeout=5) as client:
            try:
                client.get("/api/version")
            except PortInUseError as error:
                return error
            except httpx.HTTPError:
                continue  # it may have ended: its port is not to be had
        return None
    return None


def _head(connected: Connected) -> Found | None:
    return next((f for f in connected.runtime.observe() if f.role == HEAD), None)
