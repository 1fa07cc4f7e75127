"""`raycluster drill`: break something on purpose, under load, and tell what clients saw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from raycluster.commands import _console
from raycluster.commands._arguments import Json, SpecOption, SpecPath
from raycluster.core.errors import MissedLimitError, UsageError
from raycluster.hosts import session
from raycluster.hosts.session import OpenedSpec

if TYPE_CHECKING:
    from raycluster.drill.cluster import DrillCluster
    from raycluster.openai_client.target import Target

Fault = Annotated[
    str,
    typer.Option(
        "--fault",
        "-f",
        help="Fault to inject: replica, hang, worker, head, gateway or partition.",
    ),
]
Host = Annotated[
    str, typer.Option(help="Host to inject the fault on. Default: chosen by the drill.")
]
Rate = Annotated[float, typer.Option("--rate", "-r", help="Requests per second during the drill.")]
Limit = Annotated[float, typer.Option(help="Seconds to wait for recovery.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--assert",
        help="Fail with exit code 4 unless this holds, such as 'failed==0' or 'recover<60s'; "
        "repeatable.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def drill(
    spec: SpecPath = None,
    named: SpecOption = None,
    *,
    fault: Fault = "replica",
    host: Host = "",
    rate: Rate = 5.0,
    limit: Limit = 600.0,
    limits: Limits = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Inject a fault under load and report failed requests and the time to recover."""
    opened = session.open_session(spec, named)
    from raycluster.drill.report import parse
    from raycluster.drill.run import DrillOptions, check, prepare, run

    options = DrillOptions(fault, host, rate, limit=limit)
    check(options)
    wanted = [parse(text) for text in limits or ()]
    console = _console.err()
    with opened.fleet() as fleet:
        broken, cluster = prepare(opened.spec, fleet, options)
        if not yes and not opened.spec.cluster.name.endswith("-test"):
            name = opened.spec.cluster.name
            _console.confirm(
                f"Break {broken.victim} of cluster {name}?",
                f"would break {broken.victim}",
                where=name,
                hint="add --yes, or give test clusters names that end in -test",
            )
        with _targets(opened, cluster) as targets:
            report = run(
                opened.spec,
                broken,
                targets,
                options,
                lambda line: console.print(line, markup=False),
            )
    if as_json:
        _console.print_json(report.to_json())
    else:
        _console.out().print(report.text(), markup=False)
    missed = [miss for each in wanted if (miss := each.miss(report))]
    if report.recover is None:
        missed.insert(0, f"not recovered within {limit:g} s")
    if missed:
        raise MissedLimitError("; ".join(missed), where=fault, hint="raycluster status")


@contextmanager
def _targets(opened: OpenedSpec, cluster: DrillCluster) -> Iterator[list[Target]]:
    """Yield the ways in, over the connections that are there: every gateway, or the head's API."""
    from contextlib import ExitStack

    from raycluster.openai_client.target import Target
    from raycluster.spec.secret_sources import bearer
    from raycluster.spec.services import LOOPBACK
    from raycluster.tunnel.channels import ChannelForwarder
    from raycluster.tunnel.ports import Forward, choose_ports

    spec, gate = opened.spec, opened.spec.gateway
    if not spec.models:
        raise UsageError(
            "the spec has no model to send requests to", where=spec.cluster.name, hint="[[models]]"
        )
    headers: dict[str, str] = {}
    hosts, remote, scheme = list(spec.hosts[:1]), (LOOPBACK, spec.ports.api), "http"
    if gate:
        keys = opened.secrets().api_keys
        if keys:
            if not (owner := gate.unlimited):
                raise UsageError(
                    "every key has limits, which a drill would exceed",
                    where="gateway.keys",
                    hint="add a key without limits under api_keys",
                )
            headers = bearer(f"the key of {owner}", keys[owner])
        remote, scheme = (gate.near, spec.ports.gateway), gate.scheme
        hosts = list(spec.hosts) if gate.on == "all" else hosts
    with ExitStack() as stack:
        targets: list[Target] = []
        ca_file = ""
        if gate and gate.tls:
            ca_file = gate.tls.cert or stack.enter_context(_own_certificate(cluster))
        for host in hosts:
            (chosen,) = choose_ports([Forward("API", remote, url=f"{scheme}://127.0.0.1:{{port}}")])
            way = ChannelForwarder(cluster.fleet[host.name].transport, [chosen])
            stack.enter_context(way)
            targets.append(Target(chosen.address, spec.models[0].name, headers, ca_file))
        yield targets


@contextmanager
def _own_certificate(cluster: DrillCluster) -> Iterator[str]:
    """Yield a file with the certificate that the cluster makes for itself."""
    from tempfile import NamedTemporaryFile

    from raycluster.services.gateway import own_certificate
    from raycluster.services.wiring import Wiring

    addresses = {name: host.address for name, host in cluster.before.hosts.items()}
    certificate, _ = own_certificate(cluster.spec, Wiring(addresses, cluster.token))
    with NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate)
        file.flush()
        yield file.name
