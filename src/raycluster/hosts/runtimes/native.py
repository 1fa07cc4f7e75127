"""Processes without Docker: a Python environment, and a supervisor that keeps each one alive.

A plain user with sh and python3 is enough. `image`, `shm_size` and `box` of a Process mean nothing
here.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, cast

from raycluster.core.accelerators.choice import visible
from raycluster.core.accelerators.values import clean
from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import (
    ROOT,
    Channel,
    Completed,
    Files,
    Found,
    Health,
    KnownVersions,
    PrepareForecast,
    Process,
    Shell,
    Tell,
    Transport,
    Versions,
    cluster_of,
    file_mode,
)
from raycluster.core.stored_json import MOST, unread
from raycluster.core.untrusted import Told, is_name, versions
from raycluster.hosts.runtimes.native_environment import PYTHON, NativeEnvironment
from raycluster.hosts.runtimes.native_remote import Remote, entering, supervisor_program
from raycluster.requirements import RequirementsLock

SCHEMA = 1  # of launch.json
UNPRIVILEGED = 1024
"""From here on every user may listen at a port."""
QUIET_S = 60.0
"""Seconds for the next piece of a log that is read to its end."""

_PART = 'tail -c "$1" "$2" | head -c "$0"'  # what is written meanwhile belongs to the next look
# A line on stderr every second: the reader notices that it should end, and this that nobody reads.
_FOLLOW = 'tail -c "$0" -F "$1" 2>/dev/null & while sleep 1; do echo >&2 || exit; done'

_Output = Generator[tuple[Channel, bytes], None, None]


class NativeRuntime:
    """Runs a cluster's processes under `~/.raycluster/CLUSTER` of the user on one host."""

    def __init__(
        self,
        host: str,
        cluster: str,
        transport: Transport,
        *,
        python: str = "",
        requirements: tuple[str, ...] = (),
        uv_args: tuple[str, ...] = (),
        lock: RequirementsLock | None = None,
        version: str = PYTHON,
        start_on_boot: bool = True,
        root: str = "",
        owner: str = "",
    ) -> None:
        self._host = host
        self._transport = transport
        self._remote = Remote(host, cluster, transport, root)
        self._environment = NativeEnvironment(
            host, transport, python, requirements, uv_args, lock, version
        )
        self._start_on_boot = start_on_boot
        self._owner = owner

    def observe(self) -> tuple[Found, ...]:
        told = self._remote.ask("observe")["found"]
        return tuple(found for each in told if (found := _found(Told(each, "the native runtime"))))

    def prepare(self, process: Process, tell: Tell) -> Versions:
        """Make the environment, unless one is given, and return what is in it."""
        self._refuse_volumes(process)
        facts = self._remote.ask("where")
        self._environment.ensure(facts, tell)
        return self._versions(process, facts)

    def known_versions(self, process: Process) -> KnownVersions:
        """Return what is in an environment that is there, or what one that is made will have."""
        facts = self._remote.ask("where")
        if self._environment.complete(facts):
            return KnownVersions(self._versions(process, facts), whole=True)
        return KnownVersions(self._environment.wanted, whole=False)

    def _versions(self, process: Process, facts: Mapping[str, Any]) -> Versions:
        versions = self._environment.versions(facts)
        if "ray" in process.argv and not versions.ray:
            raise RuntimeUnavailableError(
                f"the Python in {self._environment.programs(facts)} has no ray",
                where=self._host,
                hint='install "ray[serve]" there, or omit [runtime] python',
            )
        return versions

    def verify(self, processes: Sequence[Process]) -> tuple[str, ...]:
        """Try limits, ports, locks and what packages come from; look into what is there already."""
        if not processes:
            return ()
        facts = self._remote.ask("where")
        self._environment.programs(facts)
        complete = self._environment.complete(facts)
        ports = {port for process in processes for port in process.ports.values()}
        told = self._remote.ask(
            "needs",
            ports=sorted(port for port in ports if port < UNPRIVILEGED),
            indexes=[] if complete else list(self._environment.indexes),
        )
        wrong = [(each[0].text(2000), each[1].text(2000)) for each in Told(told["wrong"])]
        if wrong:
            what = "; ".join(what for what, _ in wrong)
            hint = "; ".join(dict.fromkeys(hint for _, hint in wrong))
            raise RuntimeUnavailableError(what, where=self._host, hint=hint)
        node = next((process for process in processes if "ray" in process.argv), None)
        if node is None or not complete:
            return ()
        there = self._versions(node, facts)
        return (f"Python {there.python}, Ray {there.ray}, vLLM {there.vllm or 'none'}",)

    def outlook(self, process: Process, paths: Sequence[str]) -> PrepareForecast:  # noqa: ARG002
        """Return whether the environment is there; the process sees the host's own paths."""
        facts = self._remote.ask("where", boot=self._start_on_boot)
        root, home, boot = facts["root"], facts["home"], str(facts.get("boot") or "")
        places = {
            path: home + path[1:] if path.startswith("~") else path.replace(ROOT, root)
            for path in paths
        }
        there, lock = self._environment.complete(facts), self._environment.lock
        what = "the Python environment"
        if there or lock is None:
            return PrepareForecast(what, there, root, places=places, boot=boot)
        return PrepareForecast(
            what,
            there,
            root,
            places=places,
            boot=boot,
            download_bytes=lock.download,
            stored_bytes=lock.stored,
        )

    def start(self, process: Process, versions: Versions, files: Files, tell: Tell) -> None:
        self._refuse_volumes(process)
        facts = self._remote.ask("stop", role=process.role)
        root = facts["root"]
        launch = {
            "schema": SCHEMA,
            "owner": self._owner,
            "ports": sorted(set(process.ports.values())),
            "argv": _argv(process, facts),
            "env": _env(process, facts, self._environment.programs(facts)),
            "cwd": root,
            "temp": facts["temp"],
            "fingerprint": process.fingerprint,
            "versions": asdict(versions),
            "files": sorted(files),
        }
        for name, content in files.items():
            self._transport.put(f"{root}/{name}", content, mode=file_mode(content))
        self._transport.put(f"{root}/supervisor.py", supervisor_program(), mode=0o600)
        description = json.dumps(launch).encode()
        self._transport.put(f"{root}/roles/{process.role}/launch.json", description, mode=0o600)
        answer = self._remote.ask("launch", role=process.role, start_on_boot=self._start_on_boot)
        if answer["boot"]:
            tell(f"will not restart automatically after a reboot or a kill: {answer['boot']}")

    def remove(self, role: str | None = None, *, purge: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        """End one role, or everything with its folders, and return what was removed.

        The environment lies in the cluster's folder, so there is nothing more to purge.
        """
        return tuple(map(str, self._remote.ask("remove", role=role or "")["removed"]))

    def inside(self, role: str) -> Shell:
        told = self._remote.ask("describe", role=role)
        return _Inside(self._transport, told["root"], told["launch"])

    def read(self, path: str) -> bytes:
        """Return a file of the cluster's folder. Raises RecordError where it is large."""
        told = self._remote.ask("read", path=path).get("content")
        try:
            content = bytes.fromhex(told if isinstance(told, str) else "none")
        except ValueError as error:
            raise unread(path, "the host does not report it", self._host) from error
        if len(content) > MOST:
            raise unread(path, "it is too large", self._host)
        return content

    def neighbours(self) -> Mapping[int, str]:
        """Return which other clusters of this user have processes here, by their ports."""
        found = self._remote.ask("neighbours")["found"]
        told = [Told(each, "the native runtime") for each in found]
        return {
            port: cluster_of(clean(each["cluster"].text(), 80), clean(each["owner"].text(), 80))
            for each in told
            for number in each["ports"]
            if (port := number.whole()) is not None
        }

    def sockets(self) -> frozenset[int]:
        """Return the inodes of our processes' sockets."""
        inodes = self._remote.ask("sockets")["inodes"]
        return frozenset(inode for inode in inodes if type(inode) is int)

    def logs(
        self, role: str, *, follow: bool, tail: int | None, since: float | None
    ) -> Iterator[bytes]:
        """Yield what the process wrote, across restarts; `since` is true to about a second.

        While it is followed, an empty piece comes every second.
        """
        told = self._remote.ask("logs", role=role, tail=tail, since=since)
        begin, size = f"+{told['begin'] + 1}", str(told["end"] - told["begin"])
        last = ("sh", "-c", _FOLLOW, begin) if follow else ("sh", "-c", _PART, size, begin)
        for argv in [*(("cat", str(old)) for old in told["older"]), (*last, told["log"])]:
            yield from self._output(argv, None if follow else QUIET_S)

    def _output(self, argv: Sequence[str], quiet: float | None) -> Iterator[bytes]:
        with closing(cast("_Output", self._transport.stream(argv, quiet=quiet))) as output:
            for channel, chunk in output:
                yield chunk if channel == "stdout" else b""

    def _refuse_volumes(self, process: Process) -> None:
        for volume in process.volumes:
            if volume.source != volume.target:
                raise RuntimeUnavailableError(
                    f"the volume {volume.source}:{volume.target} needs the docker runtime",
                    where=self._host,
                    hint=f"use {volume.source} itself in the spec, or use the docker runtime",
                )


@dataclass(frozen=True)
class _Inside:
    transport: Transport
    root: str
    launch: str

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = 60.0,
    ) -> Completed:
        return self.transport.run(self._there(argv, env), input=input, timeout=timeout)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[tuple[Channel, bytes]]:
        return self.transport.stream(self._there(argv, env), quiet=quiet)

    def put(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        target = path if path.startswith("/") else f"{self.root}/{path}"
        self.transport.put(target, content, mode=mode)

    def _there(self, argv: Sequence[str], env: Mapping[str, str] | None) -> tuple[str, ...]:
        more = ("env", *(f"{name}={value}" for name, value in env.items())) if env else ()
        return entering(self.launch, (*more, *argv))


def _argv(process: Process, facts: Mapping[str, Any]) -> list[str]:
    argv = [part.replace(ROOT, facts["root"]) for part in (*process.argv, *process.more)]
    if argv[:2] == ["ray", "start"] and not any(part.startswith("--temp-dir") for part in argv):
        # Ray gives a worker the path that the head uses on its host; a socket's path is
        # limited to 107 bytes, so that it cannot lie under the root
        argv.append(f"--temp-dir={facts['temp']}/ray")
    return argv


def _env(process: Process, facts: Mapping[str, Any], programs: str) -> dict[str, str]:
    root = facts["root"]
    devices = visible(process.gpus)
    gpus = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    if devices is not None and facts.get("amd"):
        gpus["HIP_VISIBLE_DEVICES"] = devices
    return {
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",  # where the host has no such locale
        **facts["environment"],
        "PATH": f"{programs}:{facts['system_path']}",
        "TMPDIR": facts["temp"],
        "RAY_TMPDIR": facts["temp"],
        **gpus,
        **{name: value.replace(ROOT, root) for name, value in process.env.items()},
        "RAYCLUSTER_OWNER": facts["owner"],
        "RAYCLUSTER_ROLE": process.role,
        "RAYCLUSTER_ROOT": root,
    }


def _found(told: Told) -> Found | None:
    """Return one of our processes, None for a folder that no process of ours has."""
    role, health = told["role"].text(), told["health"].text(20)
    if not is_name(role):
        return None
    return Found(
        role=role,
        fingerprint=told["fingerprint"].text(100),
        health=_HEALTH.get(health, "stopped"),
        versions=versions(told["versions"]),
        detail=told["detail"].text(2000),
        started=told["started"].text(100),
        owner=told["owner"].text(),
    )


_HEALTH: Mapping[str, Health] = {"running": "running", "restarting": "restarting"}
