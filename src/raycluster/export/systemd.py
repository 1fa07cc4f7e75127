"""systemd units for each host; pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

from raycluster.core import templates
from raycluster.core.accelerators.choice import visible
from raycluster.core.errors import SpecError
from raycluster.core.interfaces import ROOT, Process, file_mode
from raycluster.export.design import APP_FILE, CAPABILITIES, Design, Role, roles, sender
from raycluster.export.readme import firewall, missing, readme
from raycluster.export.tree import ExportedFile, Tree, script, secret
from raycluster.services.ray_node import HEAD
from raycluster.spec import ResolvedHost
from raycluster.spec.models import CPU_REQUIREMENTS, GPU_REQUIREMENTS

DEPLOY = "deploy"
USER = "raycluster"
"""Who runs it where the spec names no user of the host."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def systemd(design: Design) -> Tree:
    """Return the files of all hosts. Raises SpecError."""
    tree: dict[str, ExportedFile] = {}
    left_out: dict[str, set[str]] = {}
    for host in design.spec.hosts:
        parts = roles(design, host)
        tree |= {f"{host.name}/{path}": entry for path, entry in _host(design, host, parts)}
        for path in missing(parts):
            left_out.setdefault(f"HOST/secrets/{path}", set()).add(host.name)
    tree |= {f"{name}/firewall.nft": ExportedFile(rules) for name, rules in firewall(design)}
    environments = [
        (h.name, programs(design, h), _requirements(h, design.gpus[h.name]))
        for h in design.spec.hosts
    ]
    told = readme("systemd", design, left_out, environments=environments)
    return {**tree, "README.md": told}


def root(design: Design) -> str:
    """Return the cluster's folder on every host."""
    return f"/var/lib/raycluster/{design.name}"


def unit_name(design: Design, role: str) -> str:
    """Return the name of a role's unit."""
    return f"raycluster-{design.name}-{role}.service"


def programs(design: Design, host: ResolvedHost) -> str:
    """Return the folder with `python` and `ray` on a host. Raises SpecError."""
    python = host.runtime.python or f"/opt/raycluster/{design.name}/bin/python"
    if not python.startswith("/"):
        raise SpecError(
            f"{python} is not an absolute path, and a system service has no home folder",
            where=f"{host.name}: runtime.python",
            hint="write it as an absolute path",
        )
    return posixpath.dirname(python)


def _host(
    design: Design, host: ResolvedHost, parts: tuple[Role, ...]
) -> Iterator[tuple[str, ExportedFile]]:
    path = f"{programs(design, host)}:{SYSTEM_PATH}"
    processes = [part.process for part in parts]
    deploys = APP_FILE in parts[0].files
    if deploys:
        processes.append(sender(design, parts[0], DEPLOY))
    for process in processes:
        yield f"units/{unit_name(design, process.role)}", ExportedFile(_unit(design, host, process))
        yield f"env/{process.role}.env", ExportedFile(_environment(design, process, path))
    for part in parts:
        for name, content in part.files.items():
            mode = 0o755 if file_mode(content) == 0o700 else 0o644
            yield f"files/{part.name}/{name}", ExportedFile(content, mode)
        for name, held in part.secrets.items():
            if held is not None:
                yield f"secrets/{part.name}/{name}", secret(held)
    yield "install.sh", script(_install(design, host, parts, processes))


def _install(
    design: Design, host: ResolvedHost, parts: Iterable[Role], processes: Iterable[Process]
) -> bytes:
    return templates.render(
        "export/install.sh",
        cluster=design.name,
        root=root(design),
        user=_user(host),
        roles=[part.name for part in parts],
        needed=[f"{part.name}/{path}" for part in parts for path in part.secrets],
        units=[unit_name(design, process.role) for process in processes],
    )


def _unit(design: Design, host: ResolvedHost, process: Process) -> bytes:
    once = process.role == DEPLOY
    after = ["network-online.target", *([unit_name(design, HEAD)] if once else [])]
    bind = ["NET_BIND_SERVICE"] if any(port < 1024 for port in process.ports.values()) else []
    capabilities = " ".join(f"CAP_{name}" for name in (*CAPABILITIES, *bind))
    argv = ("/usr/bin/env", *process.argv)  # which finds programs by the PATH of the service
    starts = [("Type", "oneshot"), ("RemainAfterExit", "yes"), ("TimeoutStartSec", "infinity")]
    stays = [("Type", "exec"), ("Restart", "always"), ("RestartSec", "2")]
    sections: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Unit",
            [
                ("Description", f"{process.role} of the cluster {design.name}"),
                ("Wants", " ".join(after)),
                ("After", " ".join(after)),
                *([] if once else [("StartLimitIntervalSec", "0")]),
            ],
        ),
        (
            "Service",
            [
                *(starts if once else stays),
                ("User", _user(host).replace("%", "%%")),
                ("WorkingDirectory", "/tmp"),  # noqa: S108 - the service's own
                ("EnvironmentFile", f"/etc/raycluster/{design.name}/{process.role}.env"),
                ("ExecStart", " ".join(quoted(_placed(part, root(design))) for part in argv)),
                ("KillMode", "mixed"),  # `ray start` ends its own processes in an order
                ("TimeoutStopSec", "15"),
                ("UMask", "0077"),
                ("LimitNOFILE", "1048576"),
                ("LimitMEMLOCK", "infinity"),
                ("TasksMax", "infinity"),
                ("CapabilityBoundingSet", capabilities),
                *([("AmbientCapabilities", "CAP_NET_BIND_SERVICE")] if bind else []),
                ("NoNewPrivileges", "yes"),
                ("PrivateTmp", "yes"),
                ("ProtectSystem", "full"),
                ("ProtectControlGroups", "yes"),
                ("ProtectKernelTunables", "yes"),
                ("RestrictSUIDSGID", "yes"),
                ("LockPersonality", "yes"),
            ],
        ),
        ("Install", [("WantedBy", "multi-user.target")]),
    ]
    text = "\n".join(
        f"[{title}]\n" + "".join(f"{key}={value}\n" for key, value in lines)
        for title, lines in sections
    )
    return text.encode()


def quoted(argument: str) -> str:
    """Return one word of ExecStart that means exactly `argument`."""
    doubled = argument.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9_./:=,@+%$-]+", doubled):
        return doubled
    signs = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(signs.get(sign, sign) for sign in doubled) + '"'


def _environment(design: Design, process: Process, path: str) -> bytes:
    devices = visible(process.gpus)
    gpus = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    values: Mapping[str, str] = {
        "LANG": "C.UTF-8",
        "PATH": path,
        "TMPDIR": "/tmp",  # noqa: S108 - the service's own
        **gpus,
        **{name: _placed(value, root(design)) for name, value in process.env.items()},
        "RAYCLUSTER_ROOT": root(design),
    }
    lines = "".join(f"{name}={_value(value)}\n" for name, value in values.items())
    return f"# The environment of {process.role}.\n{lines}".encode()


def _value(text: str) -> str:
    """Return a value as systemd's EnvironmentFile quotes it."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", text) + '"'


def _placed(text: str, folder: str) -> str:
    return text.replace(ROOT, folder)


def _requirements(host: ResolvedHost, gpus: int) -> str:
    """Return what to install where no environment is there, as Markdown."""
    if host.runtime.python:
        return "exists already"
    wanted = host.runtime.requirements or (GPU_REQUIREMENTS if gpus else CPU_REQUIREMENTS)
    return "`uv pip install " + " ".join(f"'{each}'" for each in wanted) + "`"


def _user(host: ResolvedHost) -> str:
    return host.ssh.user or USER
