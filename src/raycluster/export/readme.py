"""What a person is told beside the files; pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Set
from ipaddress import ip_address
from typing import Literal

from raycluster.core import templates, tested_versions
from raycluster.core.interfaces import Secret
from raycluster.export.design import Design, Role
from raycluster.export.tree import ExportedFile
from raycluster.services import firewall as rules
from raycluster.services.gateway import GATEWAY, KEYS_FILE
from raycluster.services.grafana import GRAFANA
from raycluster.services.processes import roles as role_names
from raycluster.services.ray_node import RAY_ROLES, SECRETS_FILE, TOKEN_FILE
from raycluster.services.wiring import Wiring
from raycluster.spec.services import LOOPBACK
from raycluster.spec.types import bracketed

Kind = Literal["compose", "systemd", "kuberay"]

_EXAMPLE_KEY = '"~^(?i:bearer) +KEY\\z" "{owner}";'
_SELF_SIGNED = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650"


def missing(parts: Iterable[Role]) -> Iterator[str]:
    """Yield the secret files that are left out, as `ROLE/PATH`."""
    for part in parts:
        yield from (f"{part.name}/{path}" for path, held in part.secrets.items() if held is None)


def firewall(design: Design) -> Iterator[tuple[str, bytes]]:
    """Yield, by host, the nftables rules that the spec has managed by us."""
    wiring = Wiring(design.addresses, Secret(""))
    for host in design.spec.hosts:
        text, _ = rules.wanted(design.spec, host, wiring)
        if text:
            yield host.name, text.encode()


def readme(
    kind: Kind, design: Design, left_out: Mapping[str, Set[str]], **more: object
) -> ExportedFile:
    """Return README.md; `left_out` are secret files with the hosts that need them.

    `more` is what the format's own template shows.
    """
    spec = design.spec
    gate = spec.gateway
    text = templates.render(
        f"export/{kind}.md",
        cluster=design.name,
        ray=tested_versions.RAY,
        hosts=[(h.name, h.role, design.addresses[h.name], design.gpus[h.name]) for h in spec.hosts],
        sockets=[(h.name, _exported(h.runtime.socket)) for h in spec.hosts if h.runtime.socket],
        head=spec.head_host.name,
        workers=len(spec.hosts) > 1,
        secrets=[
            (path, ", ".join(sorted(hosts)), how(design, path))
            for path, hosts in sorted(left_out.items())
        ],
        firewall=spec.firewall.manage,
        gateway=gate is not None,
        others=", ".join(_others(design)),
        grafana=GRAFANA in _others(design),
        scheme=gate.scheme if gate else "http",
        keys=bool(gate and gate.sources),
        port=spec.ports.gateway if gate else spec.ports.api,
        address=bracketed(_reached(design)),
        **more,
    )
    return ExportedFile(text)


def _reached(design: Design) -> str:
    """Return where clients on the head's network reach the API, or the head itself does."""
    gate = design.spec.gateway
    if gate is None:
        return LOOPBACK
    everywhere = ip_address(gate.address).is_unspecified
    return design.addresses[design.spec.head_host.name] if everywhere else gate.address


def _exported(socket: str) -> str:
    """Return the command that lets `docker` use a socket."""
    home, rest = ('"$HOME"', socket[1:]) if socket.startswith("~") else ("", socket)
    return f"export DOCKER_HOST=unix://{home}{shlex.quote(rest)}"


def _others(design: Design) -> list[str]:
    """Return what runs beside Ray, on any host."""
    names = (name for host in design.spec.hosts for name in role_names(design.spec, host))
    return list(dict.fromkeys(name for name in names if name not in RAY_ROLES))


def how(design: Design, path: str) -> str:
    """Return how to make a secret file that was left out, `.../ROLE/PATH`; plain Markdown."""
    role, _, name = path.removeprefix("HOST/secrets/").partition("/")
    gate = design.spec.gateway
    if role in RAY_ROLES and name == TOKEN_FILE:
        return "the same on every host: `openssl rand -hex 32`"
    if role in RAY_ROLES and name == SECRETS_FILE:
        told = ", ".join(f'"{key}": "..."' for key in sorted(design.spec.secrets))
        return f"JSON: `{{{told}}}`"
    if role == GATEWAY and name.endswith(KEYS_FILE) and gate:
        lines = "`, `".join(_EXAMPLE_KEY.format(owner=owner) for owner in sorted(gate.sources))
        return f"a line for each key, in which KEY is the key, of letters and digits: `{lines}`"
    if role == GATEWAY and name.endswith(".pem"):
        return (
            f"certificate and key of the gateway; to make both: `{_SELF_SIGNED} -subj /CN=NAME "
            "-keyout key.pem -out cert.pem`"
        )
    return "only with `raycluster export --with-secrets`"
