"""What our containers are made of: pure, but for the SDK's own builders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

import docker
from docker.types import LogConfig, Mount, Ulimit
from docker.utils import parse_bytes

from raycluster.core.interfaces import ROOT, BoxOptions, Files, Process, Versions, Volume, file_mode
from raycluster.hosts.runtimes.docker_gpus import GpuOptions

FOLDER = "/raycluster"
CLUSTER, OWNER, PORTS, ROLE, FINGERPRINT, VERSIONS, ONEOFF = (
    f"raycluster.{name}"
    for name in ("cluster", "owner", "ports", "role", "fingerprint", "versions", "oneoff")
)
# What root in an image needs to use folders of other users and to drop to another user (nginx);
# Ray and the engines need none. The other eight of Docker's defaults are gone.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")

IMPATIENT = {"UV_HTTP_CONNECT_TIMEOUT": "5", "UV_HTTP_TIMEOUT": "30", "UV_HTTP_RETRIES": "1"}
"""For uv in an image, unless the spec says otherwise: a host without a way out is common."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Docker's own, for images that name none."""


def container_name(cluster: str, role: str) -> str:
    """Return the name of the container that has this role."""
    return f"raycluster-{cluster}-{role}"


def volume_name(cluster: str) -> str:
    """Return the name of the volume that is the cluster's folder on a host."""
    return f"raycluster-{cluster}"


def labels(cluster: str, owner: str, process: Process, versions: Versions) -> dict[str, str]:
    """Return the labels by which a container is found and compared."""
    return {
        CLUSTER: cluster,
        OWNER: owner,
        PORTS: json.dumps(sorted(set(process.ports.values()))),
        ROLE: process.role,
        FINGERPRINT: process.fingerprint,
        VERSIONS: json.dumps({name: value for name, value in vars(versions).items() if value}),
    }


def container_options(
    client: docker.APIClient,
    cluster: str,
    process: Process,
    home: str,
    gpus: GpuOptions | None,
    *,
    more: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what `create_container` takes beside image, name and labels; sends nothing.

    `more` is added to the process's environment.
    """
    gpus = gpus or GpuOptions()
    box = process.box
    argv = [_rooted(part) for part in (*process.argv, *process.more)]
    bind = ["NET_BIND_SERVICE"] if any(port < 1024 for port in process.ports.values()) else []
    host_config = client.create_host_config(
        network_mode="host",
        init=True,
        restart_policy={"Name": "unless-stopped"},
        log_config=LogConfig(
            type=LogConfig.types.JSON, config={"max-size": "50m", "max-file": "3"}
        ),
        shm_size=_shared_memory(process),
        mem_limit=_memory(process),
        ipc_mode=box.ipc or None,
        ulimits=[Ulimit(name=n, soft=most, hard=most) for n, most in box.ulimits.items()] or None,
        cap_drop=["ALL"],
        cap_add=[*dict.fromkeys((*CAPABILITIES, *bind, *map(_bare, box.capabilities)))],
        security_opt=["no-new-privileges:true"],
        mounts=[_own_volume(cluster), *_mounts(process, home)],
        **{**gpus.host, **_devices(gpus, box)},
    )
    return {
        "entrypoint": argv[:1],
        "command": argv[1:],
        "environment": {**gpus.environment, **_environment(process), **(more or {})},
        "working_dir": "/tmp",  # noqa: S108 - the container's own
        "host_config": host_config,
        "use_config_proxy": False,
    }


def _memory(process: Process) -> int | None:
    """Return the memory that the container may take where the whole host has a limit.

    That limit is out of the container's sight, and Ray ends its workers in time by what it sees.
    """
    limits = process.limits
    return limits.memory_bytes if limits and limits.of_memory else None


def _shared_memory(process: Process) -> int | str | None:
    """Return the size of /dev/shm, no more than the memory that there is for it."""
    if not process.shm_size or process.box.ipc == "host":
        return None
    most = _memory(process)
    if most is None or parse_bytes(process.shm_size) <= most:
        return process.shm_size
    return most


def _bare(capability: str) -> str:
    return capability.removeprefix("CAP_")


def _devices(gpus: GpuOptions, box: BoxOptions) -> dict[str, Any]:
    devices = [*gpus.host.get("devices", ()), *box.devices]
    return {"devices": list(dict.fromkeys(devices))} if devices else {}


def oneoff_options(
    client: docker.APIClient, cluster: str, process: Process, home: str
) -> dict[str, Any]:
    """Return the options of a container that only looks at what the process would see."""
    host_config = client.create_host_config(
        network_mode="none",
        cap_drop=["ALL"],
        cap_add=list(CAPABILITIES),
        security_opt=["no-new-privileges:true"],
        mounts=list(_mounts(process, home)),
    )
    return {
        "environment": _environment(process),
        "host_config": host_config,
        "labels": {CLUSTER: cluster, ONEOFF: "probe"},
        "use_config_proxy": False,
    }


def adding_options(
    client: docker.APIClient, cluster: str, process: Process, home: str
) -> dict[str, Any]:
    """Return the options of a container that writes what an image lacks into our folder.

    It is root there, for the folder is; it has the host's network, and the process's environment,
    in which proxies and indexes of packages stand.
    """
    host_config = client.create_host_config(
        network_mode="host",
        init=True,
        cap_drop=["ALL"],
        cap_add=list(CAPABILITIES),
        security_opt=["no-new-privileges:true"],
        log_config=LogConfig(type=LogConfig.types.JSON),
        mounts=[_own_volume(cluster), *_mounts(process, home)],
    )
    return {
        "environment": {**IMPATIENT, **_environment(process)},
        "host_config": host_config,
        "labels": {CLUSTER: cluster, ONEOFF: "add"},
        "use_config_proxy": False,
        "user": "0:0",
    }


def with_added(process: Process, of_image: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return PATH and PYTHONPATH that lead to `folder` under ours too, after all others."""
    added = f"{FOLDER}/{folder}"
    env = {**of_image, **_environment(process)}
    paths = (env.get("PATH") or DEFAULT_PATH, f"{added}/bin")
    modules = (each for each in (env.get("PYTHONPATH"), added) if each)
    return {"PATH": ":".join(paths), "PYTHONPATH": ":".join(modules)}


def needs_home(process: Process) -> bool:
    """Return whether a volume's source begins in the user's home folder."""
    return any(volume.source.startswith("~") for volume in process.volumes)


def place(path: str, cluster: str, process: Process, home: str, data_root: str) -> str:
    """Return where on the host a path of the container lies, or "" where it is in the image.

    `data_root` is the daemon's own folder, `home` the user's where a volume names it.
    """
    inside = PurePosixPath(_rooted(path))
    own = {FOLDER: volume_name(cluster)}
    targets = {**own, **{v.target: _expanded(v, home) for v in process.volumes}}
    mounted = [t for t in targets if inside.is_relative_to(t)]
    if not mounted:
        return ""
    target = max(mounted, key=len)
    source = targets[target]
    if not source.startswith("/"):
        source = f"{data_root}/volumes/{source}/_data"
    return str(PurePosixPath(source, inside.relative_to(target)))


def owner(user: str, passwd: str, group: str) -> tuple[int, int]:
    """Given an image's USER and its account files, return the uid and gid that Docker uses."""
    name, _, group_name = (user or "0").partition(":")
    account = _entry(passwd, name)
    uid = int(account[2]) if account else int(name) if name.isdigit() else 0
    gid = int(account[3]) if account else 0
    if group_name:
        found = _entry(group, group_name)
        gid = int(found[2]) if found else int(group_name) if group_name.isdigit() else gid
    return uid, gid


def archive(files: Files, ids: tuple[int, int], now: float) -> bytes:
    """Return a tar for `/` that holds our folder and the files in it.

    The folder is everybody's, like /tmp, for roles of one host may run as different users; only
    our containers see it. What is in it is the user's own. `now` is the files' time, in seconds:
    Python takes the bytecode of an older file for that of a newer one of the same time and size.
    """
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        root = PurePosixPath(FOLDER).relative_to("/")
        tar.addfile(_entry_of(str(root), tarfile.DIRTYPE, 0o1777, (0, 0), now))
        for folder in sorted({p for name in files for p in PurePosixPath(name).parents} - _HERE):
            tar.addfile(_entry_of(str(root / folder), tarfile.DIRTYPE, 0o700, ids, now))
        for name, content in files.items():
            entry = _entry_of(str(root / name), tarfile.REGTYPE, file_mode(content), ids, now)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


_HERE = {PurePosixPath(".")}


def _entry_of(
    name: str, kind: bytes, mode: int, ids: tuple[int, int], now: float
) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, now
    entry.uid, entry.gid = ids
    return entry


def _entry(database: str, wanted: str) -> list[str] | None:
    """Return the fields of the line whose name or number is `wanted`."""
    rows = [line.split(":") for line in database.splitlines()]
    named = [row for row in rows if len(row) > 3 and row[0] == wanted]
    numbered = [row for row in rows if len(row) > 3 and row[2] == wanted]
    return next(iter(named + numbered), None)


def _rooted(text: str) -> str:
    return text.replace(ROOT, FOLDER)


def _environment(process: Process) -> dict[str, str]:
    return {name: _rooted(value) for name, value in process.env.items()}


def _own_volume(cluster: str) -> Mount:
    return Mount(FOLDER, volume_name(cluster), type="volume", labels={CLUSTER: cluster})


def _mounts(process: Process, home: str) -> Iterator[Mount]:
    """Yield the process's volumes; unlike `-v`, a mount never makes a missing host folder."""
    for volume in process.volumes:
        on_host = volume.source.startswith(("/", "~"))
        kind: Literal["bind", "volume"] = "bind" if on_host else "volume"
        source = _expanded(volume, home) if on_host else volume.source
        yield Mount(_rooted(volume.target), source, type=kind, read_only=volume.read_only)


def _expanded(volume: Volume, home: str) -> str:
    return home + volume.source[1:] if volume.source.startswith("~") else volume.source
