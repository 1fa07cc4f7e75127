"""Whether a Docker engine can run our containers: those have the host's network and its folders.

What is certain to fail is refused by its name before anything is changed; what works less well is
a note.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycluster.core.accelerators.host import by_word
from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import Process
from raycluster.hosts.runtimes.docker_socket import EXAMPLE, NATIVE

OLDEST = (1, 40)
"""Of the engine's API, which Docker 19.03 speaks: GPUs are asked for since."""
HOST_NETWORK = "29.5"
"""The first Docker whose rootless daemon gives containers the host's network."""

LOOK = r"""
LC_ALL=C; export LC_ALL
echo "kernel $(uname -r)"; echo "system $(uname -s)"; echo "uid $(id -u)"; echo "user $(id -un)"
d=$1
while [ ! -e "$d" ] && [ "$d" != / ] && [ "$d" != . ]; do d=$(dirname -- "$d"); done
if [ "$d" = "$1" ]; then echo root; elif [ -x "$d" ]; then echo "missing-under $d"; fi
[ "$2" = rootless ] || exit 0
echo "own $(readlink /proc/self/ns/net)"
for each in /proc/[0-9]*; do
  [ -O "$each" ] && read -r name 2>/dev/null <"$each/comm" && [ "$name" = dockerd ] &&
    net=$(readlink "$each/ns/net") && [ -n "$net" ] && echo "net $net"
done
echo "lowest $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start 2>/dev/null)"
[ ! -d /run/systemd/system ] || echo systemd
[ ! -e "/var/lib/systemd/linger/$(id -un)" ] || echo linger
true
"""
_DESKTOPS = re.compile(r"\b(?:docker desktop|orbstack|rancher desktop|colima)\b", re.IGNORECASE)
_COPIES = {
    "vfs": "which copies the whole image for each layer: several times its size must be free",
    "devicemapper": "which Docker no longer supports: change it to overlay2",
}


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself, and what its host's shell says of it."""

    version: str = ""
    api: tuple[int, ...] = ()
    system: str = "linux"
    name: str = ""
    kernel: str = ""
    root: str = ""
    driver: str = ""
    security: tuple[str, ...] = ()
    podman: str = ""

    @property
    def rootless(self) -> bool:
        """Whether its containers' root is a plain user of the host."""
        return "rootless" in self.security


def engine(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
    """Return what the answers to `/info` and `/version` tell."""
    api = str(version.get("ApiVersion") or "")
    parts = [c for c in version.get("Components") or () if isinstance(c, Mapping)]
    podman = next((str(c.get("Version") or "?") for c in parts if _is_podman(c)), "")
    options = [str(each) for each in info.get("SecurityOptions") or ()]
    return EngineFacts(
        version=str(version.get("Version") or info.get("ServerVersion") or "?")[:100],
        api=tuple(map(int, api.split("."))) if re.fullmatch(r"\d{1,3}\.\d{1,3}", api) else (),
        system=str(version.get("Os") or info.get("OSType") or "linux"),
        name=str(info.get("OperatingSystem") or "")[:100],
        kernel=str(info.get("KernelVersion") or ""),
        root=str(info.get("DockerRootDir") or ""),
        driver=str(info.get("Driver") or ""),
        security=tuple(o.partition("name=")[2].partition(",")[0] for o in options if "name=" in o),
        podman=podman[:100],
    )


def _is_podman(component: Mapping[str, Any]) -> bool:
    return "podman" in str(component.get("Name") or "").lower()


def refuse(found: EngineFacts, text: str, socket: str, host: str) -> None:
    """Raise RuntimeUnavailableError for an engine that cannot run a node; `text` is the host's."""
    told = by_word(text)
    for what, hint in _reasons(found, told, socket):
        raise RuntimeUnavailableError(what, where=host, hint=f"{hint}; {NATIVE}")


def _reasons(
    found: EngineFacts, told: Mapping[str, Sequence[str]], socket: str
) -> Iterator[tuple[str, str]]:
    other = f"set the socket of another Docker ({EXAMPLE})"
    if found.podman:
        yield (
            f"podman {found.podman} answers at {socket}, but is not supported: it does not restart "
            "nodes as Docker does, and loses the cluster's volume with a container",
            f"install Docker Engine, {other}",
        )
    if found.system != "linux":
        yield (
            f"the Docker at {socket} runs {found.system} containers, but Linux containers are "
            "needed",
            "use a Linux host, or switch Docker to Linux containers",
        )
    if found.api and found.api < OLDEST:
        yield (
            f"Docker {found.version} at {socket} is too old: its API version is "
            f"{_dotted(found.api)}, but {_dotted(OLDEST)} is needed (Docker 19.03)",
            "update Docker there",
        )
    kernel = _one(told, "kernel")
    if _DESKTOPS.search(found.name) or (found.kernel and kernel and found.kernel != kernel):
        yield (
            f"the Docker at {socket} ({found.name or found.version}) runs in a virtual machine: "
            "its containers use the network of the virtual machine, not of the host",
            f"install Docker Engine on the host itself, or {other}",
        )
    if missing := told.get("missing-under"):
        yield (
            f"the Docker at {socket} belongs to another machine or container: its folder "
            f"{found.root} does not exist here (only {missing[0]} does)",
            f"set `host` to the address of that machine, or {other}",
        )
    if "userns" in found.security:
        yield (
            f"the Docker at {socket} remaps users (userns-remap), so containers cannot use the "
            "host's network",
            "remove `userns-remap` from /etc/docker/daemon.json and restart Docker",
        )
    if found.rootless:
        yield from _of_rootless(told, socket)


def _of_rootless(told: Mapping[str, Sequence[str]], socket: str) -> Iterator[tuple[str, str]]:
    own, nets = _one(told, "own"), told.get("net", ())
    if not own or own not in nets:
        why = (
            "gives containers their own network, in which other hosts cannot reach a node"
            if nets
            else "does not show whether its containers use the host's network"
        )
        yield (
            f"the Docker at {socket} is rootless, and {why}",
            f"update it to {HOST_NETWORK} or newer, which can use the host's network, or use the "
            "system-wide Docker",
        )
    user = _one(told, "user") or "USER"
    if socket.startswith("/run/user/") and "systemd" in told and "linger" not in told:
        yield (
            f"the Docker at {socket} is rootless, and stops when its user logs out",
            f"keep it running, also after a reboot: `sudo loginctl enable-linger {_quoted(user)}`",
        )


def _quoted(name: str) -> str:
    return shlex.quote(name) if name.isprintable() else "USER"


def refuse_process(found: EngineFacts, text: str, process: Process, host: str) -> None:
    """Raise RuntimeUnavailableError for what rootless Docker cannot give this process."""
    if not found.rootless:
        return
    lowest = _one(by_word(text), "lowest")
    low = [p for p in process.ports.values() if lowest.isdecimal() and p < int(lowest)]
    if low:
        raise RuntimeUnavailableError(
            f"rootless Docker does not allow containers to listen on port {min(low)}, which the "
            f"{process.role} needs",
            where=host,
            hint=f"choose ports from {lowest} up, or allow it: "
            f"`sudo sysctl -w net.ipv4.ip_unprivileged_port_start={min(low)}`",
        )
    if process.box.ipc == "host":
        raise RuntimeUnavailableError(
            'rootless Docker cannot share the host\'s IPC: ipc = "host"',
            where=host,
            hint="remove `ipc` from [runtime] for this host, and set `shm_size`",
        )


def notes(found: EngineFacts, process: Process) -> Iterator[str]:
    """Yield what works less well with this engine than a person may think."""
    if why := _COPIES.get(found.driver):
        yield f"its storage driver is {found.driver}, {why}"
    if found.rootless:
        yield "it is rootless: limits above the user's own (memlock) are rejected"
        if process.gpus:
            yield (
                "rootless Docker passes on NVIDIA GPUs with CDI, or with no-cgroups = true in "
                "/etc/nvidia-container-runtime/config.toml"
            )
    if found.root.startswith("/var/snap/"):
        yield "it is the snap package: containers see only those host folders that are under /home"
    if "selinux" in found.security and any(
        v.source.startswith(("/", "~")) for v in process.volumes
    ):
        yield (
            "SELinux confines its containers: the folders in `volumes` need its label "
            "(`chcon -Rt container_file_t FOLDER`)"
        )


def _one(told: Mapping[str, Sequence[str]], word: str) -> str:
    return next(iter(told.get(word, ())), "").strip()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
