"""Whether the hosts reach one another at the cluster's ports, and at the addresses of the spec.

Every host listens for a moment with a token of its own, and all connect to all: an answer tells
the host from another machine with its address, and a refusal from where somebody surely listens is
that of a firewall. A host without Python listens not, and tries with what it has.
"""

from __future__ import annotations

import errno
import inspect
import json
import secrets
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import cast

from raycluster.apply.context import ApplyContext
from raycluster.apply.preconditions import connectivity_on_host
from raycluster.apply.preconditions.host_requirements import Tried
from raycluster.core.errors import HostError, RayclusterError, raise_together
from raycluster.core.interfaces import Channel
from raycluster.core.untrusted import Told, read_json
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.plan.actions import Action, Start
from raycluster.services.firewall import rules_file
from raycluster.services.ray_node import RAY_ROLES, node_ports
from raycluster.spec import ClusterSpec

LISTEN_S, DIAL_S, BEGIN_S = 40.0, 5.0, 20.0
BESIDE_S = 5.0
"""Seconds for another session beside that of a listener, which sshd may not open."""
SUBJECT = "network"

_PYTHON = (
    "for p in python3 /usr/bin/python3 /usr/libexec/platform-python; do"
    ' command -v $p >/dev/null 2>&1 && exec $p -I -S -c "$@"; done; exit 127'
)
# Where there is no Python: perl tells the error's number, the others only whether they connected.
_PLAIN = r"""
if command -v perl >/dev/null 2>&1; then
  exec perl -MSocket=:DEFAULT,getaddrinfo -e '
    my ($err, @found) = getaddrinfo($ARGV[0], $ARGV[1], {socktype => SOCK_STREAM});
    exit 3 if $err or !@found;
    socket(my $s, $found[0]{family}, SOCK_STREAM, 0) or exit 3;
    $SIG{ALRM} = sub { print "errno 110\n"; exit 0 };
    alarm $ARGV[2];
    print "errno ", (connect($s, $found[0]{addr}) ? 0 : $! + 0), "\n";
  ' "$1" "$2" "$3"
fi
for p in nc ncat busybox; do
  command -v $p >/dev/null 2>&1 || continue
  [ $p = busybox ] && p="busybox nc"
  $p -z -w "$3" "$1" "$2" </dev/null >/dev/null 2>&1 && echo errno 0 || echo no
  exit 0
done
if command -v bash >/dev/null 2>&1; then
  timeout "$3" bash -c 'exec 3<>"/dev/tcp/$1/$2"' sh "$1" "$2" >/dev/null 2>&1 &&
    echo errno 0 || echo no
  exit 0
fi
echo nothing
"""

_END = """kill "$1" 2>/dev/null; i=0
while [ -e "/proc/$1" ] && [ $((i += 1)) -lt 100 ]; do sleep 0.05; done"""

_Output = Generator[tuple[Channel, bytes], None, None]


@dataclass(frozen=True)
class _Listening:
    """What a host told that listens: the ports that others hold, and whether its address is its."""

    token: str
    pid: int
    taken: frozenset[int] = frozenset()
    own: bool = True
    guarded: bool = False


@dataclass(frozen=True)
class _Way:
    """What one host found of another: by port, the error's number and what was heard there.

    `words` is why nothing was tried.
    """

    found: Mapping[int, tuple[int | None, str]] = field(default_factory=dict)
    words: str = ""


def shared_ports(spec: ClusterSpec) -> tuple[int, ...]:
    """Return the ports at which nodes reach one another, of ranges the first and the last."""
    ranges = spec.ports.ranges.values()
    ends = {port for first, last in ranges for port in (first, last)}
    alone = {*node_ports(spec).values(), spec.ports.gcs}
    return (spec.ports.gcs, *sorted((alone | ends) - {spec.ports.gcs}))


def try_neighbours(
    spec: ClusterSpec,
    fleet: Fleet,
    addresses: Mapping[str, str],
    about: Collection[str] | None = None,
) -> dict[str, tuple[Tried, ...]]:
    """Return for each host what came of connecting to itself and to the others.

    With `about`, only what concerns one of those hosts is tried.
    """
    about = addresses.keys() if about is None else about
    ports, tokens = shared_ports(spec), new_tokens(addresses)
    listening: dict[str, _Listening] = {}
    with ExitStack() as stack:
        begun = fleet.each(
            addresses, lambda c: _listen(spec, c, ports, tokens[c.host.name], addresses)
        )
        for name, result in begun.items():
            if isinstance(result, tuple):
                stack.enter_context(closing(result[0]))
                listening[name] = result[1]
        ways = fleet.each(
            addresses,
            lambda c: _dial(c, ports, _concerned(c.host.name, addresses, about), listening),
        )
    fleet.each(listening, lambda c: _ended(c, listening[c.host.name].pid))
    found: dict[str, tuple[Tried, ...]] = {}
    for name in addresses:
        way = ways[name]
        if isinstance(way, RayclusterError):
            found[name] = (Tried(SUBJECT, way.what, way.hint),)
        else:
            found[name] = tuple(_judged(spec, name, addresses, listening, way))
    return found


def new_tokens(names: Collection[str]) -> dict[str, str]:
    """Return for each host what it alone answers with."""
    return {name: secrets.token_hex(8) for name in names}


def refuse_strangers(
    work: ApplyContext, actions: Sequence[Action], addresses: Mapping[str, str]
) -> None:
    """Raise HostError where nodes that are to be started and the others do not reach one another.

    `addresses` are those of the hosts that were reached.
    """
    starts = [a for a in actions if isinstance(a, Start) and a.process.role in RAY_ROLES]
    if not starts or len(addresses) < 2:
        return
    tried = try_neighbours(work.spec, work.fleet, addresses, {a.host for a in starts})
    raise_together(
        [
            HostError(each.text, where=name, hint=each.hint)
            for name, found in tried.items()
            for each in found
            if each.failed
        ]
    )


def _concerned(name: str, addresses: Mapping[str, str], about: Collection[str]) -> dict[str, str]:
    """Return the addresses that a host should try."""
    return {n: address for n, address in addresses.items() if name in about or n in about}


def _listen(
    spec: ClusterSpec,
    connected: Connected,
    ports: Sequence[int],
    token: str,
    addresses: Mapping[str, str],
) -> tuple[_Output, _Listening] | None:
    """Let a host listen, and return what ends it; None where it cannot, or then cannot dial."""
    order = {
        "ports": ports,
        "token": token,
        "seconds": LISTEN_S,
        "address": addresses[connected.host.name],
        "rules": rules_file(spec.cluster.name),
    }
    output = cast("_Output", connected.transport.stream(_argv("listen", order), quiet=BEGIN_S))
    said = b""
    try:
        for channel, piece in output:
            said += piece if channel == "stdout" else b""
            if b"\n" in said:
                break
        told = read_json(said.partition(b"\n")[0], "python3", connected.host.name)
        connected.transport.run(("true",), timeout=BESIDE_S)
    except HostError:  # without Python, or with one that is too old; with MaxSessions 1
        output.close()
        return None
    taken = frozenset(int(port) for port, _ in told["taken"].named() if port.isdecimal())
    pid, own = told["pid"].whole() or 0, told["own"].whole() == 0
    return output, _Listening(token, pid, taken, own, told["guarded"].flag())


def _ended(connected: Connected, pid: int) -> None:
    """Return when a listener is gone: its ports are wanted."""
    if pid > 1:
        connected.transport.run(("sh", "-c", _END, "sh", str(pid)))


def _argv(word: str, order: Mapping[str, object]) -> tuple[str, ...]:
    source = inspect.getsource(connectivity_on_host)
    return ("sh", "-c", _PYTHON, "raycluster", source, word, json.dumps(order))


def _dial(
    connected: Connected,
    ports: Sequence[int],
    addresses: Mapping[str, str],
    listening: Mapping[str, _Listening],
) -> dict[str, _Way]:
    """Connect from a host to every other one, and to itself by its address."""
    name = connected.host.name
    asked = {
        other: ports[:1] if other == name or other not in listening else ports
        for other in addresses
        if other != name or other in listening
    }
    pairs = [(other, port) for other, wanted in asked.items() for port in wanted]
    if not pairs:
        return {}
    targets = [(addresses[other], port) for other, port in pairs]
    argv = _argv("dial", {"targets": targets, "seconds": DIAL_S})
    done = connected.transport.run(argv)
    if done.exit_code == 0:
        told = read_json(done.text, "python3", name)["found"].listed()
        each = dict(zip(pairs, map(_pair, told), strict=False))
        return {
            other: _Way({port: each[other, port] for port in wanted if (other, port) in each})
            for other, wanted in asked.items()
        }
    first = ports[0]
    return {o: _plainly(connected, addresses[o], first) for o in asked if o != name}


def _pair(told: Told) -> tuple[int | None, str]:
    return told[0].whole(), told[1].text(200)


def _plainly(connected: Connected, address: str, port: int) -> _Way:
    """Connect by what a host without Python has."""
    argv = ("sh", "-c", _PLAIN, "sh", address, str(port), f"{DIAL_S:.0f}")
    words = connected.transport.run(argv, timeout=30).text.split()
    if words[:1] == ["errno"] and len(words) == 2 and words[1].isdecimal():
        return _Way({port: (int(words[1]), "")})
    if words == ["no"]:
        return _Way({port: (None, "")})
    return _Way(words="testing needs python3, perl, nc or bash on the host")


def _judged(
    spec: ClusterSpec,
    name: str,
    addresses: Mapping[str, str],
    listening: Mapping[str, _Listening],
    ways: Mapping[str, _Way],
) -> Iterator[Tried]:
    own = listening.get(name)
    heard = any(own and text == own.token for _, text in _found(ways, name))
    if own and not own.own and (len(addresses) > 1 or not heard):
        yield Tried(
            SUBJECT,
            f"{addresses[name]} is not an address of the host itself, but its processes must "
            "listen there",
            "set private_address to one that the host has (`ip address`) and the others can reach",
        )
    for other, way in ways.items():
        if other != name:
            yield _reached(spec, other, addresses[other], way, listening.get(other))


def _found(ways: Mapping[str, _Way], name: str) -> list[tuple[int | None, str]]:
    return list(ways[name].found.values()) if name in ways else []


def _reached(
    spec: ClusterSpec, other: str, address: str, way: _Way, there: _Listening | None
) -> Tried:
    place = f"{other} at {address}"
    if there is None or way.words:
        return _untold(other, place, way)
    strange = [
        port
        for port, (code, text) in way.found.items()
        if code == 0 and text and text != there.token and port not in there.taken
    ]
    if strange:
        what = f"a different machine responds at {place}"
        return Tried(SUBJECT, what, f"correct {other}'s private_address")
    closed = {
        port: code
        for port, (code, _) in way.found.items()
        if code != 0 and (port not in there.taken or code != errno.ECONNREFUSED)
    }
    if not closed:
        return Tried(SUBJECT, f"can reach {place}", failed=False)
    if there.guarded and spec.firewall.manage:
        text = f"cannot reach {place} yet: `up` rewrites that host's firewall rules"
        return Tried(SUBJECT, text, failed=False)
    text = f"cannot reach {place}"
    if len(closed) < len(way.found):
        text = f"can reach {place}, but not its ports {', '.join(map(str, sorted(closed)))}"
    why = ", ".join(sorted({_words(code) for code in closed.values()}))
    return Tried(SUBJECT, f"{text}: {why}", _cure(other))


def _untold(other: str, place: str, way: _Way) -> Tried:
    """Judge a way to a host that could not listen: a refusal shows a way as well as an answer."""
    code = next((code for code, _ in way.found.values()), None)
    if code is None:
        why = (
            way.words
            or f"nothing listens there yet, and {other} has no python3 for a test listener"
        )
        return Tried(SUBJECT, f"could not test whether it can reach {place}: {why}", failed=False)
    if code in (0, errno.ECONNREFUSED):
        return Tried(SUBJECT, f"can reach {place}", failed=False)
    return Tried(SUBJECT, f"cannot reach {place}: {_words(code)}", _cure(other))


def _cure(other: str) -> str:
    return f"open the cluster's ports between the hosts, or set {other}'s private_address"


_WORDS = {
    errno.ECONNREFUSED: "rejected by a firewall",
    errno.ETIMEDOUT: "no response",
    errno.EHOSTUNREACH: "no route to the host, or rejected by a firewall",
    errno.ENETUNREACH: "network unreachable",
    errno.EACCES: "blocked by the host's own firewall",
    errno.EPERM: "blocked by the host's own firewall",
    errno.EADDRNOTAVAIL: "the host has no address of that family",
}


def _words(code: int | None) -> str:
    return "connection failed" if code is None else _WORDS.get(code, f"error {code}")
