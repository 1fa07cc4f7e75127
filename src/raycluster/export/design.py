"""What is exported: the processes of each host, their files, and which of these are secret; pure.

A file is secret when it changes with the secrets. So every process is made three times: with two
sets of made-up secrets, and with the true ones where these are wanted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raycluster.core.interfaces import ROOT, Process, Secret, live_id_path
from raycluster.plan.preconditions import check_addresses, check_gpus
from raycluster.services.app import app
from raycluster.services.node_files import app_fingerprint, code_files, haproxy_file, secret_files
from raycluster.services.processes import desired
from raycluster.services.ray_node import MEMBERS_FILE, RAY_ROLES, SECRETS_FILE
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets

APP_FILE = "app.json"
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
"""What root needs to use folders of other users and to drop to another user."""


@dataclass(frozen=True)
class Given:
    """The true token and secrets."""

    token: Secret
    secrets: Secrets


@dataclass(frozen=True)
class Design:
    """A spec with all that it leaves to the hosts: each one's address and number of GPUs.

    Without `given`, secret files are named and left out. Raises SpecError for a design that could
    not run.
    """

    spec: ClusterSpec
    addresses: Mapping[str, str]
    gpus: Mapping[str, int]
    given: Given | None = None

    def __post_init__(self) -> None:
        check_addresses(self.spec, self.addresses)
        check_gpus(self.spec, {name: float(count) for name, count in self.gpus.items()})

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.spec.cluster.name


@dataclass(frozen=True)
class Role:
    """A process with its files by path under the root; a secret that is left out is None."""

    process: Process
    files: Mapping[str, bytes] = field(repr=False)
    secrets: Mapping[str, bytes | None] = field(repr=False)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.process.role

    @property
    def is_node(self) -> bool:
        """True for a node of Ray."""
        return self.name in RAY_ROLES


def app_body(design: Design, *, env_secrets: bool = False) -> dict[str, Any]:
    """Return what Serve is asked to run.

    With `env_secrets` the replicas find their secrets in the environment and not in a file.
    """
    spec = design.spec.model_copy(update={"secrets": {}}) if env_secrets else design.spec
    gpus = {name: float(count) for name, count in design.gpus.items()}
    return app(spec, gpus=gpus, fingerprint=app_fingerprint(Secret(""), {}))


def sender(design: Design, head: Role, role: str) -> Process:
    """Return what hands the app to Serve on the head, waits until it runs, and ends."""
    spec, env = design.spec, head.process.env
    return Process(
        role=role,
        argv=(
            *("python3", "-m", "raycluster.serve.send_app", f"{ROOT}/{APP_FILE}"),
            f"--dashboard=http://127.0.0.1:{spec.ports.dashboard}",
            f"--timeout={spec.cluster.app_timeout:g}",
        ),
        env={name: env[name] for name in ("PYTHONPATH", "RAY_AUTH_TOKEN_PATH")},
        image=head.process.image,
    )


def roles(design: Design, host: ResolvedHost) -> tuple[Role, ...]:
    """Return all that runs on the host, Ray first."""
    first, second = (_made(design, host, _invented(design, word)) for word in ("a", "b"))
    true = _made(design, host, design.given) if design.given else None
    return tuple(
        _role(one, two, true[number] if true else None)
        for number, (one, two) in enumerate(zip(first, second, strict=True))
    )


_Made = tuple[Process, Mapping[str, bytes]]


def _made(design: Design, host: ResolvedHost, given: Given) -> list[_Made]:
    """Return the host's processes, each with all files that it needs."""
    wiring = Wiring(design.addresses, given.token, given.secrets, apart=True)
    processes = desired(design.spec, host, wiring)
    return [(process, _files(design, process, given)) for process in processes]


def _files(design: Design, process: Process, given: Given) -> dict[str, bytes]:
    files = {**process.files, **process.live_files}
    files.pop(live_id_path(process.role), None)  # for `raycluster`, which does not come again
    if process.role not in RAY_ROLES:
        return files
    secret = secret_files(given.token, given.secrets.replicas)
    if not design.spec.secrets:
        del secret[SECRETS_FILE]
    members = [{"name": host.name, "role": host.role} for host in design.spec.hosts]
    files |= {**code_files(), **secret, MEMBERS_FILE: json.dumps(members).encode()}
    body = app_body(design)
    files |= haproxy_file(body)
    if process.role == "head" and body["applications"]:
        files[APP_FILE] = json.dumps(body, indent=2).encode() + b"\n"
    return files


def _role(first: _Made, second: _Made, true: _Made | None) -> Role:
    process, files = first
    other, others = second
    held = {path for path in files if files[path] != others.get(path)}
    env = {name: value for name, value in process.env.items() if other.env.get(name) == value}
    return Role(
        replace(process, env=env, files={}, files_id="", live_files={}),
        {path: content for path, content in sorted(files.items()) if path not in held},
        {path: true[1][path] if true else None for path in sorted(held)},
    )


def _invented(design: Design, word: str) -> Given:
    """Return made-up secrets where the spec names some; a certificate that is given is none."""

    def some(names: Mapping[str, str]) -> dict[str, Secret]:
        return {name: Secret(f"{word}-{name}") for name in names}

    gate = design.spec.gateway
    certificate = design.given.secrets.certificate if design.given else word.encode()
    held = Secrets(
        replicas=some(design.spec.secrets),
        api_keys=some(gate.sources) if gate else {},
        certificate=certificate if gate and gate.tls else b"",
        certificate_key=Secret(word) if gate and gate.tls else None,
    )
    return Given(Secret(word * 64), held)
