"""Requests straight to the servers of engines: what HAProxy is told instead of Serve's own way.

Serve writes where each replica listens. The server of its engine listens so far above that port as
OFFSET says, so nothing else has to be known here. Health stays with the replica's own port: Serve's
health, draining and places decide who gets requests. What a replica tells of itself is asked of the
replica, by a second section with the same servers. A replica of an earlier release has nobody at
its engine's port, and gets its requests as Serve says.
"""

from __future__ import annotations

import errno
import json
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

ENGINE_HEADER = "x-raycluster-engine"
ENGINE = "vllm"
"""What has a server of its own; another engine, in a replica, says its name itself."""

OWN = "-own"
OWN_PATHS = r"^(/m/[^/]+)?/(raycluster/.*|metrics/?|v1/models/.+)$"
"""What replicas answer, and not the servers of their engines."""

OWNER_HEADER, LIMITS_HEADER = "x-raycluster-owner", "x-raycluster-limits"
CLASSES = {"high": -1, "low": 1}
"""What HAProxy's queue calls the priorities of keys; all others have 0."""

AHEAD_MS = 1000
"""How much later a request stands in the queue for each one that its key has there already."""

PAUSE_S = 10
"""Seconds for which a share of the places is kept for a key that asks nothing."""

KEPT = "raycluster-kept"
RESPONSES = r"^(/m/[^/]+)?/v1/responses"
FINDS = Path(__file__).with_name("kept.lua")
"""Finds the engine that keeps an answer."""

FIND_S = 10
"""Seconds for one engine to say whether it keeps an answer."""

BODY_S = 10
"""Seconds for a request's body to arrive before nobody looks which answer it goes on from."""

UNSURE = ("ServiceUnavailableError", "an engine that may keep this is silent: try again later")

RETRY_S = 1
QUEUE_S = 600
"""Seconds that a request waits for a free place; HAProxy's own default is that of a connection."""

SHARE = ("RateLimitError", "too many requests of this key are waiting: try again later")
FULL = ("RateLimitError", "too many requests are waiting for this model: try again later")
BARE = {
    400: ("BadRequestError", 30, "the request is not HTTP as it should be"),
    403: ("PermissionDeniedError", 0, "there is no websocket at this path"),
    404: ("NotFoundError", 22, "Not Found"),
    405: ("BadRequestError", 31, "Method Not Allowed"),
    500: ("InternalServerError", 21, "Internal Server Error"),
}
"""The length of what FastAPI and uvicorn say by themselves, and its words in OpenAI's form."""

PROBE_S = 1.0
"""Seconds for engines to take a connection; those of hosts that are silent stay what they were."""

Address = tuple[str, int]
_SERVER = re.compile(r"(?m)^(\s*server )(\S+) (\S+):(\d+) check(.*)$")
_DIRECT = re.compile(r"(?m)^(\s*server )(\S+) (\S+):(\d+) check addr .*$")


def refusing(addresses: Iterable[Address]) -> frozenset[Address]:
    """Return those at which nobody listens, though their host answers."""
    refused: set[Address] = set()
    with ExitStack() as opened, suppress(OSError):  # such as too many open files
        asked = opened.enter_context(selectors.DefaultSelector())
        for host, port in addresses:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            probe = opened.enter_context(socket.socket(family))
            probe.setblocking(False)
            try:
                probe.connect((host.strip("[]"), port))
            except BlockingIOError:
                asked.register(probe, selectors.EVENT_WRITE, (host, port))
            except ConnectionRefusedError:
                refused.add((host, port))
            except OSError:
                continue
        end = time.monotonic() + PROBE_S
        while asked.get_map() and (left := end - time.monotonic()) > 0:
            for found, _ in asked.select(left):
                probe = cast("socket.socket", found.fileobj)
                asked.unregister(probe)
                if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                    refused.add(found.data)
    return frozenset(refused)


Refusing = Callable[[Iterable[Address]], frozenset[Address]]


def straight(
    config: str,
    limits: Mapping[str, Sequence[int]],
    offset: int,
    *,
    address: str = "",
    absent: Refusing = refusing,
) -> str:
    """Return the configuration in which requests for the applications of `limits` go straight.

    `limits` has how many requests a server takes at once, and how many wait for each. `address` is
    where the servers of this node's engines listen; without it that is loopback. `absent` tells
    where nobody listens.
    """
    if not offset:
        return config
    sections = re.split(r"(?m)^(?=\S)", config)
    names = {f"http-{app}": limit for app, limit in limits.items()}
    models = [s for s in sections if _name(s) in names and _SERVER.search(s)]
    engines = {e for s in models for m in _replicas(s) for e in _engines(m, offset, address)}
    without = absent(engines)
    direct = {_name(s): _direct(s, names[_name(s)], offset, address, without) for s in models}
    kept = _kept(direct)
    made: list[str] = []
    for section in sections:
        name = _name(section)
        if section in models:
            made += [direct[name], _own(section, name)]
        elif section.startswith("frontend http_frontend\n"):
            known = [n for n in names if f"backend {n}\n" in config]
            made.append(_divided(_keeping(section) if kept else section, known))
        else:
            made.append(section)
    return _loaded("".join([*made, kept])) if kept else "".join(made)


def _name(section: str) -> str:
    """Return the name of a backend."""
    kind, _, name = section.partition("\n")[0].partition(" ")
    return name if kind == "backend" else ""


def _replicas(backend: str) -> Sequence[re.Match[str]]:
    """Return the lines of servers that are replicas: the other one is Serve's own proxy."""
    return [m for m in _SERVER.finditer(backend) if not m[5].rstrip().endswith("backup")]


def _engines(server: re.Match[str], offset: int, address: str) -> list[Address]:
    """Return where the server of a replica's engine may listen, the likely place first.

    One that started before its node was one of several listens on loopback.
    """
    host, port = server[3], int(server[4]) + offset
    here = address and host in ("127.0.0.1", "localhost", "::1")
    return [(address, port), (host, port)] if here else [(host, port)]


def _shown(host: str) -> str:
    """Return a host as HAProxy takes it: of a bare IPv6 address it reads the end as a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _divided(frontend: str, names: Sequence[str]) -> str:
    """Return the section that sends to replicas what replicas answer."""
    for name in names:
        rule = f"    use_backend {name} if is_{name}\n"
        own = f"    use_backend {name}{OWN} if is_{name} METH_GET {{ path_reg {OWN_PATHS} }}\n"
        frontend = frontend.replace(rule, own + rule)
    return frontend


def _bare() -> list[str]:
    """Return the lines that say in OpenAI's form what FastAPI says of itself."""
    return [
        f"http-response return {_error(status, kind, words)} hdr {ENGINE_HEADER} {ENGINE}"
        f" if {{ status {status} }} {{ res.hdr(content-length) -m int {length} }}"
        for status, (kind, length, words) in BARE.items()
    ]


def _direct(
    backend: str,
    limit: Sequence[int],
    offset: int,
    address: str,
    without: frozenset[Address],
) -> str:
    ongoing, queued = limit
    replicas = _replicas(backend)
    added = [f"timeout queue {QUEUE_S}s"]
    if replicas:
        told = _error(429, *FULL)
        most = queued * len(replicas)
        added.append(
            f"http-request return {told} hdr retry-after {RETRY_S} if {{ queue ge {most} }}"
        )
        added += _fair((ongoing + queued) * len(replicas))
    added += _bare()
    added.append(
        f"http-response set-header {ENGINE_HEADER} {ENGINE} if !{{ res.hdr({ENGINE_HEADER})"
        " -m found } !{ res.hdr(content-type) -m beg text/plain }"
    )

    def moved(line: re.Match[str]) -> str:
        begin, name, host, port, rest = line.groups()
        engines = [e for e in _engines(line, offset, address) if e not in without]
        if rest.rstrip().endswith("backup") or not engines:
            return line[0]
        (there, engine), *_ = engines
        way = f"{_shown(there)}:{engine} check addr {_shown(host)} port {port}"
        return f"{begin}{name} {way}{rest} maxconn {ongoing}"

    head, _, rest = _SERVER.sub(moved, backend).partition("\n")
    return head + "\n" + "".join(f"    {line}\n" for line in added) + rest


def _fair(places: int) -> list[str]:
    """Return the lines by which no key takes the places of all, with its priority and its turns.

    `places` are those of requests that run and wait. Of k keys each has at most places / (k + 1),
    so that there is one for who comes next. In the queue a request stands later for each one that
    its key has there already, which is why a key with many does not pass one with few, and time
    brings all of them on.
    """
    mine = f"req.fhdr({OWNER_HEADER})"
    is_key = f"{{ {mine} -m found }}"
    return [
        f"stick-table type string len 64 size 4k expire {PAUSE_S}s store conn_cur",
        f"http-request track-sc2 {mine} if {is_key}",
        f"http-request set-var(txn.raycluster_keys) table_cnt,add(1) if {is_key}",
        "http-request set-var(txn.raycluster_share)"
        f" int({places}),div(txn.raycluster_keys) if {is_key}",
        f"http-request return {_error(429, *SHARE)} hdr retry-after {RETRY_S}"
        f" if {is_key} {{ sc2_conn_cur,sub(txn.raycluster_share) gt 0 }}",
        *(
            f"http-request set-priority-class int({number})"
            f" if {{ req.fhdr({LIMITS_HEADER}) -m sub priority={name} }}"
            for name, number in CLASSES.items()
        ),
        f"http-request set-priority-offset sc2_conn_cur,mul({AHEAD_MS}) if {is_key}",
    ]


def _keeping(frontend: str) -> str:
    """Return the section that asks the engines of all models for what one of them keeps."""
    goes_on = f"if METH_POST {{ path_reg {RESPONSES}$ }}"
    kept, holder = "txn.raycluster_kept", "txn.raycluster_holder"
    rules = (
        f"http-request wait-for-body time {BODY_S}s {goes_on}",
        f"http-request set-var({kept}) req.body,json_query('$.previous_response_id') {goes_on}",
        f"http-request set-var({kept}) path,regsub(/cancel$,),regsub(.*/,)"
        f" if {{ path_reg {RESPONSES}/resp[^/]*(/cancel)?$ }}",
        f"http-request lua.raycluster_find {FIND_S * 1000} if {{ var({kept}) -m len gt 0 }}",
        f"http-request return {_error(503, *UNSURE)} hdr retry-after {RETRY_S}"
        f" if {{ var({holder}) -m str ? }}",
        f"use_backend {KEPT} if {{ var({holder}) -m found }}",
    )
    added = "".join(f"    {rule}\n" for rule in rules)
    return re.sub(r"(?m)^    use_backend ", lambda first: added + first[0], frontend, count=1)


def _kept(backends: Mapping[str, str]) -> str:
    """Return the section with the engines of all models, of which the one that was found is asked.

    An engine keeps the answers of /v1/responses to itself, and says 404 to all others; which has
    one is known by nobody else, and would be forgotten at every reload. Also one that HAProxy
    believes to be down is asked: after a reload it may have had no time to learn better.
    """
    servers = [
        f"    server {name}-{server[2]} {server[3]}:{server[4]} track {name}/{server[2]}\n"
        for name, backend in backends.items()
        for server in _DIRECT.finditer(backend)
    ]
    if not servers:
        return ""
    lines = (
        *("http-reuse always", "no option redispatch", "option persist"),
        "use-server %[var(txn.raycluster_holder)] if TRUE",
        *_bare(),
        f"http-response set-header {ENGINE_HEADER} {ENGINE}",
    )
    return f"backend {KEPT}\n" + "".join([*(f"    {line}\n" for line in lines), *servers])


def _loaded(config: str) -> str:
    """Return the configuration that has the program which finds engines."""
    lines = (f"lua-load-per-thread '{FINDS}'", "httpclient.retries 0")
    added = "".join(f"    {line}\n" for line in (*lines, "httpclient.timeout.connect 2s"))
    return re.sub(r"(?m)^global\n", lambda first: first[0] + added, config, count=1)


def _own(backend: str, name: str) -> str:
    """Return the section for the replicas themselves, who are well where the other says so."""
    lines = backend.splitlines(keepends=True)[1:]
    left = (x for x in lines if not re.match(r"\s*(option httpchk|http-check|default-server)", x))

    def tracked(line: re.Match[str]) -> str:
        last = " backup" if line[5].rstrip().endswith("backup") else ""
        return f"{line[1]}{line[2]} {line[3]}:{line[4]} track {name}/{line[2]}{last}"

    return f"backend {name}{OWN}\n" + _SERVER.sub(tracked, "".join(left))


def _error(status: int, kind: str, message: str) -> str:
    error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": status}
    return f"status {status} content-type application/json string '{json.dumps({'error': error})}'"
