"""The gateway: nginx before Serve's HTTP, with API keys, TLS, limits and a log."""

from __future__ import annotations

import math
from ipaddress import ip_address

from raycluster import templates
from raycluster.contracts import ROOT, Process
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.services import Gateway
from raycluster.spec.types import in_bytes

GATEWAY = "gateway"

# Started by root, nginx works as another user, who must reach its temporary files. It reads the
# whole configuration before it listens, and says in one line what is wrong with it.
_RUN = """\
command -v nginx >/dev/null || { echo "nginx is not installed here" >&2; exit 127; }
cd "$0" && chmod 711 . && mkdir -p temp && chmod 711 temp || exit 1
exec nginx -e stderr -p "$0" -c nginx.conf
"""


def gateway(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that lets clients in; only the head has Serve's HTTP beside it."""
    if spec.gateway is None or host.role != spec.gateway.on:
        return None
    files = _files(spec, wiring)
    return Process(
        role=GATEWAY,
        argv=("sh", "-c", _RUN, f"{ROOT}/{GATEWAY}"),
        ports={"gateway": spec.ports.gateway},
        image=spec.gateway.image,
        files=files,
        files_id=wiring.seal(files),
        note=_note(spec.gateway),
    )


def _note(gate: Gateway) -> str:
    if ip_address(gate.address).is_loopback:
        return ""
    if not gate.api_keys:
        return "the gateway serves all who reach it: without `api_keys` it asks for no key"
    return "" if gate.tls else "keys reach the gateway in the clear: without `tls` use the tunnel"


def _files(spec: ClusterSpec, wiring: Wiring) -> dict[str, bytes]:
    secrets = wiring.secrets
    files = {f"{GATEWAY}/nginx.conf": nginx_conf(spec, wiring)}
    if secrets.certificate_key:
        files[f"{GATEWAY}/cert.pem"] = secrets.certificate
        files[f"{GATEWAY}/key.pem"] = secrets.certificate_key.reveal().encode()
    return files


def nginx_conf(spec: ClusterSpec, wiring: Wiring) -> bytes:
    """Return nginx's configuration; it holds the keys."""
    gate = spec.gateway
    if gate is None:
        raise ValueError("the spec has no gateway")
    keys = wiring.secrets.api_keys
    return templates.render(
        "nginx/nginx.conf",
        listen=f"[{gate.address}]" if ":" in gate.address else gate.address,
        port=spec.ports.gateway,
        api_port=spec.ports.api,
        guarded=bool(gate.api_keys),
        api_keys=[(name, keys[name].reveal()) for name in sorted(gate.api_keys) if name in keys],
        tls=gate.tls is not None,
        paths=sorted(set(gate.paths)),
        max_body=in_bytes(gate.max_body),
        rate_limit=gate.rate_limit,
        timeout=math.ceil(gate.timeout),
    )
