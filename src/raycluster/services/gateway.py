"""The gateway: nginx before Serve's HTTP, with API keys, TLS, limits and a log."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from ipaddress import ip_address

from raycluster.core import templates
from raycluster.core.interfaces import ROOT, Process, Secret, live_id_path
from raycluster.services.certificate import expiry, self_signed
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.services import EVERYWHERE, LOOPBACK, MOST_CONNECTIONS, Gateway
from raycluster.spec.types import bracketed, in_bytes

GATEWAY = "gateway"
FIGURES_PATH = "/.raycluster/metrics"
"""Where the gateway tells Prometheus how it does; `paths` of a spec cannot name such a path."""

REFUSED_PATH = "/v1/load_lora_adapter"
"""What the gateway answers by itself, whatever the spec says."""

# Started by root, nginx works as another user, who must reach its temporary files: from the working
# folder, since the home of root lets nobody through. A request opens up to three files: client,
# server, body. It reads the whole configuration before it listens, and says in one line what is
# wrong with it. Beside it, old files of the log of requests are removed as long as it runs, and the
# oldest where they are more than 2 GiB: who asks often must not fill the disk.
_RUN = """\
command -v nginx >/dev/null || { echo "nginx is not installed" >&2; exit 127; }
cd "$0" && chmod 711 . && mkdir -p temp new access && chmod 711 temp && chmod 1733 access || exit 1
ulimit -n "$(ulimit -Hn)"
while kill -0 $$; do
  [ -s keep ] && find access -type f -mmin "+$(cat keep)" -exec rm -f {} +
  find access -type f -name '????-??-??.log' -size +262144k | while read -r log; do
    mv "$log" "${log%.log}.$(date +%s).log"
  done
  ls -lt access | awk 'NR > 1 && (sum += $5) > 2147483648 {print $NF}' | while read -r log; do
    rm -f "access/$log"
  done
  sleep 15
done >/dev/null 2>&1 &
exec nginx -e stderr -p ./ -c nginx.conf
"""

# Changes take effect without a dropped request: new processes take new connections, the old ones
# finish what they have. A configuration that nginx refuses never takes the place of the former.
# (awk by itself would stop at the first process that ends while it reads.)
_RELOAD = """\
cd "$RAYCLUSTER_ROOT/gateway" || exit 1
nginx -t -q -e stderr -p "$PWD" -c new/nginx.conf || exit 1
master=$(cat nginx.pid) || exit 1
workers() { cat /proc/[0-9]*/stat 2>/dev/null | awk -v of="$master" '$4 == of {print $1}'; }
before=" $(workers | tr '\\n' ' ') "
takes() { # whether one of before still takes connections: it calls itself otherwise when it ends
  for worker in $before; do
    case $(tr -d '\\000' <"/proc/$worker/cmdline") in *"worker process") return ;; esac
  done 2>/dev/null
  false
}
mv -f new/* . && kill -HUP "$master" || exit 1
for _ in $(seq 100); do
  takes || for worker in $(workers); do
    case "$before" in *" $worker "*) ;; *) exit 0 ;; esac
  done
  sleep 0.1
done
echo "nginx did not change over to new processes within 10 s" >&2
exit 1
"""

ANTHROPIC = {
    **{401: "authentication_error", 404: "not_found_error", 413: "request_too_large"},
    **{429: "rate_limit_error", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"},
}
"""How the errors of a status are called in Anthropic's API."""

EXPIRED = ("This API key has expired.", "invalid_request_error", "invalid_api_key")

OWNER_HEADER, MODELS_HEADER = "X-Raycluster-Owner", "X-Raycluster-Models"
LIMITS_HEADER = "X-Raycluster-Limits"
"""By which engines learn whose key it was, for which models it is, and what they keep of its
limits; not from clients."""

CORS = tuple(
    f"Access-Control-{name}"
    for name in (
        *("Allow-Origin", "Allow-Methods", "Allow-Headers", "Allow-Credentials"),
        *("Allow-Private-Network", "Expose-Headers", "Max-Age"),
    )
)
"""What the gateway alone says to browsers, whatever a server behind it says."""

EXPOSED = (
    *("X-Request-Id", "Retry-After", "X-Raycluster-Retried"),
    *(
        f"X-RateLimit-{what}-{of}"
        for of in ("Requests", "Tokens")
        for what in ("Limit", "Remaining", "Reset")
    ),
)
"""The headers that pages of allowed origins may read."""

TOO_LONG = "The URL or a header is longer than 32 kB, or all headers are longer than 60 kB."

KEEP_FILE = "keep"
"""Holds how many minutes a file of the log of requests is kept."""

BODIES_BYTES = 4_000_000_000
"""What all bodies of one class of size may have on the disk together."""

_MOST_OTHERS = 16
"""So many other nodes a gateway turns to, one after the other, while its own has no ingress."""

KEYS_FILE = "keys.conf"
"""Where the keys stand when they are apart from the configuration."""


def has_gateway(spec: ClusterSpec, host: ResolvedHost) -> bool:
    """Tell whether a gateway should run on the host."""
    return spec.gateway is not None and spec.gateway.on in (host.role, "all")


def gateway(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that lets clients in; a changed configuration reaches it by a reload."""
    if spec.gateway is None or not has_gateway(spec, host):
        return None
    files = {**_files(spec, host, wiring), **_keys_apart(spec.gateway, wiring)}
    live_id = wiring.seal(files)
    return Process(
        role=GATEWAY,
        argv=("sh", "-c", _RUN, f"{ROOT}/{GATEWAY}"),
        env={"RAYCLUSTER_ROOT": ROOT},
        ports={"gateway": spec.ports.gateway},
        image=spec.gateway.image,
        live_files={**files, live_id_path(GATEWAY): live_id.encode()},
        live_id=live_id,
        reload=("sh", "-c", _RELOAD),
        note=_note(spec.gateway),
        program="nginx",
    )


def _keys_apart(gate: Gateway, wiring: Wiring) -> dict[str, bytes]:
    if not wiring.apart or not gate.sources:
        return {}
    known = sorted(wiring.secrets.api_keys.items())
    keys = [(name, key.reveal()) for name, key in known if name in gate.sources]
    return {f"{GATEWAY}/{KEYS_FILE}": templates.render("nginx/keys.conf", api_keys=keys)}


def _note(gate: Gateway) -> str:
    if ip_address(gate.address).is_loopback:
        return ""
    if not gate.sources:
        return "the gateway serves everyone who can reach it: without `api_keys` it requires no key"
    return "" if gate.tls else "API keys are sent unencrypted: without `tls`, use the tunnel"


def _files(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> dict[str, bytes]:
    files = {f"{GATEWAY}/nginx.conf": nginx_conf(spec, host, wiring)}
    if spec.gateway and spec.gateway.access_log:
        files[f"{GATEWAY}/{KEEP_FILE}"] = b"%d\n" % _minutes(spec.gateway.access_log)
    certificate, key = _certificate(spec, wiring)
    if key:
        files[f"{GATEWAY}/cert.pem"] = certificate
        files[f"{GATEWAY}/key.pem"] = key.reveal().encode()
    return files


def _certificate(spec: ClusterSpec, wiring: Wiring) -> tuple[bytes, Secret | None]:
    if spec.gateway and spec.gateway.tls and spec.gateway.tls.self_signed:
        return own_certificate(spec, wiring)
    return wiring.secrets.certificate, wiring.secrets.certificate_key


def own_certificate(spec: ClusterSpec, wiring: Wiring) -> tuple[bytes, Secret]:
    """Return the certificate that signs itself, and its key, for all of the cluster's hosts."""
    hosts = [h.host for h in spec.hosts]
    addresses = filter(None, [wiring.addresses.get(h.name) for h in spec.hosts])
    names = (*hosts, *addresses, "localhost", LOOPBACK)
    return self_signed(wiring.token, spec.cluster.name, names)


def _ingresses(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> list[str]:
    """Return the HTTP of Serve on this node and then on the others; the head's is the first.

    Other nodes know the ways of all replicas but those of models without any. In a large cluster
    these are the head and the hosts that follow in the spec, from its end on from its beginning.
    """
    names = [h.name for h in spec.hosts]
    at = names.index(host.name)
    others = [*names[:at], *names[at + 1 :]]
    if len(others) > _MOST_OTHERS:
        following = [*names[at + 1 :], *names[1:at]]
        others = [*names[: min(at, 1)], *following][:_MOST_OTHERS]
    found = (wiring.addresses.get(name, "") for name in others)
    places = (LOOPBACK, *(bracketed(a) for a in found if a))
    return [f"{place}:{spec.ports.api}" for place in places]


def _listens(gate: Gateway, host: ResolvedHost, wiring: Wiring) -> tuple[str, ...]:
    """Return what the gateway listens on: where the spec does not say, all that a host has."""
    six = any(":" in (place or "") for place in (wiring.addresses.get(host.name), host.host))
    everywhere = gate.listen is None and gate.address == EVERYWHERE
    return (gate.address, "::") if everywhere and six else (gate.address,)


def _readers(spec: ClusterSpec, wiring: Wiring) -> list[str]:
    """Return the addresses that may read the gateway's figures: this host's and Prometheus's."""
    if not (spec.gateway and spec.monitoring and spec.monitoring.prometheus):
        return []
    known = {LOOPBACK, "::1", spec.gateway.address, wiring.addresses.get(spec.head_host.name)}
    return sorted(
        address for address in known if address and not ip_address(address).is_unspecified
    )


def nginx_conf(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> bytes:
    """Return nginx's configuration for the gateway on `host`; unless `apart`, it holds the keys."""
    gate = spec.gateway
    if gate is None:
        raise ValueError("the spec has no gateway")
    keys = wiring.secrets.api_keys
    limited = sorted(gate.keys.items())
    return templates.render(
        "nginx/nginx.conf",
        listens=[bracketed(address) for address in _listens(gate, host, wiring)],
        port=spec.ports.gateway,
        ingresses=_ingresses(spec, host, wiring),
        keys_file=KEYS_FILE if wiring.apart else "",
        guarded=bool(gate.sources),
        allowed_origins=gate.allowed_origins,
        cors=CORS,
        exposed=EXPOSED,
        errors=list(_errors(gate)),
        expired=_both(401, *EXPIRED),
        malformed=_error("The request is not HTTP as it should be.", code="malformed"),
        too_long=_error(TOO_LONG, code="malformed"),
        api_keys=[(name, keys[name].reveal()) for name in sorted(gate.sources) if name in keys],
        tls=gate.tls is not None,
        figures_path=FIGURES_PATH,
        readers=_readers(spec, wiring),
        certificate_ends=expiry(_certificate(spec, wiring)[0]) if gate.tls else None,
        paths=sorted(set(gate.paths)),
        max_body=in_bytes(gate.max_body),
        max_connections=gate.max_connections,
        bodies=_bodies(gate),
        owner_header=OWNER_HEADER,
        models_header=MODELS_HEADER,
        limits_header=LIMITS_HEADER,
        keys_limits=[(n, told) for n, _ in limited if (told := spec.kept_by_engines(n))],
        keys_models=[(n, _names(spec, key.models)) for n, key in limited if key.models],
        keys_expire=[(n, math.ceil(key.expires.timestamp())) for n, key in limited if key.expires],
        keys_rates=[(n, key.requests_per_minute) for n, key in limited if key.requests_per_minute],
        rates={rate: per_minute(rate) for rate in sorted(_rates(gate))},
        access_log=gate.access_log is not None,
        rate_limit=gate.rate_limit,
        timeout=math.ceil(gate.timeout),
    )


def _bodies(gate: Gateway) -> list[tuple[str, int]]:
    """Return how many bodies of each class may be under way: up to 1 MB, 10 MB, and larger ones."""
    sizes = {"small": 10**6, "medium": 10**7, "large": in_bytes(gate.max_body)}
    return [(n, max(1, min(MOST_CONNECTIONS, BODIES_BYTES // s))) for n, s in sizes.items()]


def _errors(gate: Gateway) -> Iterator[dict[str, object]]:
    """Yield what the gateway says by itself: location, status, and the two forms of the error."""
    many = f"at most {gate.max_connections} at once from one address, large ones fewer in all,"
    many += f" and {gate.rate_limit} a second" if gate.rate_limit else ""
    if _rates(gate):
        many += ", and of a key as many a minute as the header x-ratelimit-limit-requests says"
    wrong, server = "invalid_request_error", "server_error"
    known = (
        ("unauthorized", 401, "Incorrect API key provided.", wrong, "invalid_api_key"),
        ("unknown", 404, "There is nothing at this path.", wrong, "not_found"),
        ("too_large", 413, f"The request is larger than {in_bytes(gate.max_body)} bytes.", wrong,
         "request_too_large"),
        ("too_many", 429, f"Too many requests: {many}.", "requests", "rate_limit_exceeded"),
        ("broken", 500, "The gateway failed.", server, "gateway"),
        ("unavailable", 503, "No replica answers at the moment.", server, "unavailable"),
        ("late", 504, f"No answer within {math.ceil(gate.timeout)} seconds.", server, "timeout"),
    )  # fmt: skip
    for name, status, message, kind, code in known:
        yield {"name": name, "status": status, **_both(status, message, kind, code)}


def _both(status: int, message: str, kind: str, code: str) -> dict[str, object]:
    told = {"type": ANTHROPIC[status], "message": message}
    return {
        "openai": _error(message, kind, code),
        "anthropic": {"type": "error", "error": told},
    }


def _names(spec: ClusterSpec, models: Collection[str]) -> list[str]:
    """Return all names of models: their adapters and aliases too, for lists."""
    return [name for m in spec.models if m.name in models for name in m.names]


def _rates(gate: Gateway) -> set[int]:
    return {key.requests_per_minute for key in gate.keys.values() if key.requests_per_minute}


def per_minute(rate: int) -> int:
    """Return after how many seconds nginx lets another request through: it rounds rates down."""
    return math.ceil(1000 / (rate * 1000 // 60))


def _minutes(time: str) -> int:
    return int(time[:-1]) * 60 * {"h": 1, "d": 24, "w": 7 * 24}[time[-1]]


def _error(message: str, kind: str = "invalid_request_error", code: str = "") -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
