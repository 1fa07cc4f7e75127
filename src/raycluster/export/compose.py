"""A Docker Compose project for each host; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raycluster.core import templates
from raycluster.core.interfaces import ROOT, Process, Volume, file_mode
from raycluster.export.design import APP_FILE, CAPABILITIES, Design, Role, roles, sender
from raycluster.export.readme import firewall, missing, readme
from raycluster.export.tree import ExportedFile, Tree, as_yaml, script, secret
from raycluster.services.gateway import GATEWAY
from raycluster.services.ray_node import HEAD, WORKER
from raycluster.spec import ResolvedHost

FOLDER = "/raycluster"
PREPARE, DEPLOY = "prepare", "deploy"
_COMMENT = """\
{host} of the cluster {cluster}, for Docker Compose 2: `docker compose up -d` in this folder.
See README.md, one folder above."""

_LISTENS = """\
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '
$4 == "0A" {{ split($2, place, ":"); seen[place[2]] = 1 }}
END {{ exit !({wanted}) }}'
"""
"""For every image with a shell and awk; 0A is the state of a port that is listened on."""


def compose(design: Design) -> Tree:
    """Return the files of all hosts."""
    tree: dict[str, ExportedFile] = {}
    left_out: dict[str, set[str]] = {}
    for host in design.spec.hosts:
        parts = roles(design, host)
        tree |= {f"{host.name}/{path}": entry for path, entry in _host(design, host, parts)}
        for path in missing(parts):
            left_out.setdefault(f"HOST/secrets/{path}", set()).add(host.name)
    tree |= {f"{name}/firewall.nft": ExportedFile(rules) for name, rules in firewall(design)}
    return {**tree, "README.md": readme("compose", design, left_out)}


def _host(
    design: Design, host: ResolvedHost, parts: tuple[Role, ...]
) -> Iterator[tuple[str, ExportedFile]]:
    yield "compose.yaml", ExportedFile(_project(design, host, parts))
    yield ".env", ExportedFile(_environment_file(parts))
    yield "prepare.sh", script(templates.render("export/prepare.sh"))
    for part in parts:
        for path, content in part.files.items():
            mode = 0o755 if file_mode(content) == 0o700 else 0o644
            yield f"files/{part.name}/{path}", ExportedFile(content, mode)
        for path, held in part.secrets.items():
            if held is not None:
                yield f"secrets/{part.name}/{path}", secret(held)


def _project(design: Design, host: ResolvedHost, parts: tuple[Role, ...]) -> bytes:
    services = {PREPARE: _prepare(parts)}
    services |= {part.name: _service(design, host, part) for part in parts}
    node = parts[0]
    if APP_FILE in node.files:
        services[DEPLOY] = _deploy(design, node)
    named = {v.source for part in parts for v in part.process.volumes if v.source[0] not in "/~"}
    volumes: dict[str, Any] = {part.name: {} for part in parts}
    volumes |= {name: {"name": name} for name in sorted(named)}
    project = {"name": design.name, "services": services, "volumes": volumes}
    return as_yaml(project, comment=_COMMENT.format(host=host.name, cluster=design.name))


def _prepare(parts: tuple[Role, ...]) -> dict[str, Any]:
    """Return what lays files and secrets into the volumes, as root, before all else."""
    node = parts[0]
    needed = [f"{node.name}/{path}" for path in node.secrets]
    return {
        "image": _image(node.process),
        "user": "0:0",
        "network_mode": "none",
        "restart": "no",
        "cap_drop": ["ALL"],
        "cap_add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
        "security_opt": ["no-new-privileges:true"],
        "entrypoint": ["sh", "/from/prepare.sh"],
        "command": [part.name for part in parts],
        "environment": {"NEEDED": " ".join(needed)},
        "volumes": [
            {"type": "bind", "source": ".", "target": "/from", "read_only": True},
            *(
                {"type": "volume", "source": part.name, "target": f"/to/{part.name}"}
                for part in parts
            ),
        ],
    }


def _service(design: Design, host: ResolvedHost, part: Role) -> dict[str, Any]:
    process = part.process
    service = {
        **({} if part.is_node else {"profiles": [profile(part)]}),
        **_container(process),
        "restart": "unless-stopped",
        "healthcheck": _health(process),
        "depends_on": {PREPARE: {"condition": "service_completed_successfully"}},
        "volumes": [
            {"type": "volume", "source": part.name, "target": FOLDER},
            *(_volume(volume) for volume in process.volumes),
        ],
        "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "3"}},
    }
    if part.is_node:
        service["pull_policy"] = host.runtime.pull or "missing"
    if gpus := design.gpus[host.name] if process.gpus else 0:
        which: dict[str, Any] = {"count": "all" if process.gpus == "all" else gpus}
        if isinstance(process.gpus, tuple):
            which = {"device_ids": [str(each) for each in process.gpus]}
        device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _deploy(design: Design, node: Role) -> dict[str, Any]:
    """Return what hands the app to Serve once the head is there, and ends."""
    return {
        **_container(sender(design, node, DEPLOY), _image(node.process)),
        "restart": "no",
        "depends_on": {HEAD: {"condition": "service_healthy"}},
        "volumes": [
            {"type": "volume", "source": node.name, "target": FOLDER, "read_only": True},
            *(_volume(volume) for volume in node.process.volumes),  # where Python may be
        ],
    }


def _container(process: Process, image: str = "") -> dict[str, Any]:
    """Return how our own runtime would run it, in the words of Compose."""
    argv = [_plain(part) for part in process.argv]
    bind = ["NET_BIND_SERVICE"] if any(port < 1024 for port in process.ports.values()) else []
    box = process.box
    return {
        "image": image or _image(process),
        "network_mode": "host",
        "init": True,
        **({"shm_size": process.shm_size} if process.shm_size and box.ipc != "host" else {}),
        **({"ipc": box.ipc} if box.ipc else {}),
        **({"ulimits": dict(box.ulimits)} if box.ulimits else {}),
        **({"devices": list(box.devices)} if box.devices else {}),
        "cap_drop": ["ALL"],
        "cap_add": [*dict.fromkeys((*CAPABILITIES, *bind, *box.capabilities))],
        "security_opt": ["no-new-privileges:true"],
        "entrypoint": argv[:1],
        "command": argv[1:],
        "environment": {name: _plain(value) for name, value in process.env.items()},
        "working_dir": "/tmp",  # noqa: S108 - the container's own
    }


def profile(part: Role) -> str:
    """Return the name under which a service that is no node of Ray can be left out."""
    return "gateway" if part.name == GATEWAY else "monitoring"


def _health(process: Process) -> dict[str, Any]:
    names = {HEAD: ("dashboard",), WORKER: ("node_manager",)}.get(process.role, process.ports)
    wanted = [process.ports[name] for name in names]
    listened = " && ".join(f'"{port:04X}" in seen' for port in wanted) or "1"
    return {
        "test": ["CMD-SHELL", _escaped(_LISTENS.format(wanted=listened))],
        "interval": "5s",
        "timeout": "5s",
        "retries": 6,
        "start_period": "120s",
    }


def _volume(volume: Volume) -> dict[str, Any]:
    """Return a volume; a folder of the host that is missing is an error, and never made."""
    shared: dict[str, Any] = {"source": volume.source, "target": _plain(volume.target)}
    if volume.read_only:
        shared["read_only"] = True
    if volume.source.startswith(("/", "~")):
        return {"type": "bind", **shared, "bind": {"create_host_path": False}}
    return {"type": "volume", **shared}


def _image(process: Process) -> str:
    return f"${{{_variable(process.role)}:?see .env}}"


def _variable(role: str) -> str:
    shown = "RAY" if role in (HEAD, WORKER) else role.upper().replace("-", "_")
    return f"{shown}_IMAGE"


def _environment_file(parts: Iterable[Role]) -> bytes:
    """Return what a person is most likely to change; no secrets."""
    profiles = sorted({profile(part) for part in parts if not part.is_node})
    values: Mapping[str, str] = {
        "COMPOSE_PROFILES": ",".join(profiles),
        **{_variable(part.name): part.process.image for part in parts},
    }
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    return f"# Remove a profile to leave out its services.\n{lines}".encode()


def _plain(text: str) -> str:
    return _escaped(text.replace(ROOT, FOLDER))


def _escaped(text: str) -> str:
    """Return text in which Compose replaces no variables."""
    return text.replace("$", "$$")
