"""From hosts in the spec to connected hosts: each with its transport and its runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from raycluster.core.accelerators.host import has_nvidia, quick_script
from raycluster.core.errors import BeyondLibraryError, HostError, RayclusterError, raise_together
from raycluster.core.interfaces import Runtime, Transport
from raycluster.core.untrusted import text_of
from raycluster.hosts.fence import Fenced, Lease
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.runtime_section import CPU_REQUIREMENTS, GPU_REQUIREMENTS
from raycluster.spec.services import LOOPBACK

if TYPE_CHECKING:
    from raycluster.hosts.transports.ssh import SshOptions
    from raycluster.requirements import RequirementsLock

T = TypeVar("T")
Ask = Callable[[str], str]


@dataclass(frozen=True)
class Connected:
    """A reached host."""

    host: ResolvedHost
    transport: Transport
    runtime: Runtime

    @property
    def address(self) -> str:
        """What other nodes dial; of a host that is reached at ::1, as Ray calls it."""
        found = self.host.private_address or self.transport.address
        return LOOPBACK if found == "::1" else found


def _ssh(host: ResolvedHost, ask: Ask | None) -> Transport:
    from raycluster.hosts.transports.ssh import open_ssh

    options = ssh_options(host)
    if host.ssh.ssh == "system":
        return _system_ssh(host.name, options, ask)
    try:
        return open_ssh(host.name, options, ask=ask)
    except BeyondLibraryError as error:
        if host.ssh.ssh == "library" or shutil.which("ssh") is None:
            raise
        getattr(ask, "tell", lambda _: None)(f"{host.name}: {error.what}: trying the system's ssh")
        return _system_ssh(host.name, options, ask)


def _system_ssh(name: str, options: SshOptions, ask: Ask | None) -> Transport:
    from raycluster.hosts.transports.ssh_system import open_system

    return open_system(name, options, ask=ask)


def _local(host: ResolvedHost, ask: Ask | None) -> Transport:  # noqa: ARG001  # never asks
    from raycluster.hosts.transports.local import LocalTransport

    return LocalTransport(host.name)


def _docker(host: ResolvedHost, cluster: str, transport: Transport) -> Runtime:
    from raycluster.hosts.runtimes.docker import DockerRuntime

    options = host.runtime
    return DockerRuntime(
        host.name,
        cluster,
        transport,
        pull=options.pull or "missing",
        socket=options.socket or "",
        owner=host.owner,
    )


def _native(host: ResolvedHost, cluster: str, transport: Transport) -> Runtime:
    from raycluster.hosts.runtimes.native import NativeRuntime
    from raycluster.hosts.runtimes.native_environment import PYTHON

    options = host.runtime
    requirements, uv_args, lock = options.requirements or (), options.uv_args or (), None
    if not options.python and not requirements:
        requirements, arguments, lock = _engine(host, transport)
        uv_args = uv_args or arguments
    return NativeRuntime(
        host.name,
        cluster,
        transport,
        python=options.python or "",
        requirements=requirements,
        uv_args=uv_args,
        lock=lock,
        version=options.python_version or PYTHON,
        start_on_boot=options.start_on_boot is not False,
        root=f"{host.folder}/{cluster}" if options.folder else "",
        owner=host.owner,
    )


def _engine(
    host: ResolvedHost, transport: Transport
) -> tuple[tuple[str, ...], tuple[str, ...], RequirementsLock]:
    """Return what uv should install, with what arguments and lock, for the host's GPUs or for none.

    GPUs whose driver does not answer count: once it is fixed, they are what is meant.
    """
    from raycluster.requirements import cpu_lock, gpu_lock

    if host.gpus != 0:
        done = transport.run(("sh", "-c", quick_script()))
        if has_nvidia(text_of(done, "look for GPUs", host.name)):
            return GPU_REQUIREMENTS, (), gpu_lock()
    return CPU_REQUIREMENTS, ("--torch-backend", "cpu"), cpu_lock()


TRANSPORTS: Mapping[str, Callable[[ResolvedHost, Ask | None], Transport]] = {
    "ssh": _ssh,
    "local": _local,
}
RUNTIMES: Mapping[str, Callable[[ResolvedHost, str, Transport], Runtime]] = {
    "docker": _docker,
    "native": _native,
}
IMPORTED = {"ssh": "hosts.transports.ssh_connect", "local": "hosts.transports.local"}
"""What takes long to import when a host is reached."""


def slow_imports(spec: ClusterSpec) -> tuple[str, ...]:
    """Return the modules that reaching the spec's hosts imports late, in the order of their use."""
    transports = (IMPORTED[host.transport] for host in spec.hosts)
    runtimes = (f"hosts.runtimes.{host.kind}" for host in spec.hosts)
    return tuple(dict.fromkeys(f"raycluster.{name}" for name in (*transports, *runtimes)))


def ssh_options(host: ResolvedHost) -> SshOptions:
    """Return how the ssh transport should reach this host."""
    from raycluster.hosts.transports.ssh import SshOptions

    ssh = host.ssh
    return SshOptions(
        host=host.host,
        port=ssh.port,
        user=ssh.user,
        identity_file=ssh.identity_file,
        known_hosts=ssh.known_hosts,
        host_keys=ssh.host_keys or "strict",
        host_key=host.host_key,
        proxy_jump=ssh.proxy_jump,
        connect_timeout=ssh.connect_timeout or 10.0,
    )


def connect(
    host: ResolvedHost,
    cluster: str,
    ask: Ask | None = None,
    valid: Callable[[], None] = lambda: None,
) -> Connected:
    """Reach one host; `valid` is called before anything is done there. Raises HostError."""
    transport = Fenced(TRANSPORTS[host.transport](host, ask), valid)
    try:
        return Connected(host, transport, RUNTIMES[host.kind](host, cluster, transport))
    except BaseException:
        transport.close()
        raise


class Fleet:
    """Hosts that are worked on together, at most `parallel` at once; a context manager.

    A host that cannot be reached is remembered with its error and costs the others nothing. One
    whose connection broke is connected to again; with `reconnect_in_background`, every attempt but
    the first is made beside the caller, for whom the host keeps its error meanwhile.
    """

    def __init__(
        self,
        cluster: str,
        parallel: int,
        ask: Ask | None = None,
        *,
        reconnect_in_background: bool = False,
    ) -> None:
        self._cluster = cluster
        self._ask = ask
        self._in_background = reconnect_in_background
        self._attempts: dict[str, Thread] = {}
        self._pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="host")
        self._reached: dict[str, Connected | RayclusterError] = {}
        self._lease: Lease | None = None

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for reached in list(self._reached.values()):  # threads may still add to it
            if isinstance(reached, Connected):
                reached.transport.close()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    @contextmanager
    def under(self, lease: Lease) -> Iterator[None]:
        """Inside it nothing is done on any host without this lease: LockedError is raised.

        After an error or an interrupt this stays so, for what threads still do.
        """
        self._lease = lease
        yield
        self._lease = None

    def check(self) -> None:
        """Make sure of the lease before something is changed. Raises LockedError."""
        if self._lease is not None:
            self._lease.check()

    def _valid(self) -> None:
        if self._lease is not None:
            self._lease.valid()

    def reach(
        self, hosts: Iterable[ResolvedHost], then: Callable[[Connected], T]
    ) -> dict[str, T | RayclusterError]:
        """Connect to hosts that are not connected yet, and call `then` with each."""

        def work(host: ResolvedHost) -> T:
            return then(self._connected(host))

        return self._gather({h.name: self._pool.submit(work, h) for h in hosts})

    def _connected(self, host: ResolvedHost) -> Connected:
        reached = self._reached.get(host.name)
        if isinstance(reached, Connected):
            if reached.transport.alive:
                return reached
            reached.transport.close()
        if isinstance(reached, RayclusterError) and self._in_background:
            if not (attempt := self._attempts.get(host.name)) or not attempt.is_alive():
                self._attempts[host.name] = Thread(target=self._attempt, args=(host,), daemon=True)
                self._attempts[host.name].start()
            raise reached
        return self._connect(host)

    def _attempt(self, host: ResolvedHost) -> None:
        with suppress(RayclusterError):  # it is remembered
            self._connect(host)

    def _connect(self, host: ResolvedHost) -> Connected:
        try:
            reached = connect(host, self._cluster, self._ask, self._valid)
        except RayclusterError as error:
            self._reached[host.name] = error
            raise
        self._reached[host.name] = reached
        return reached

    def open(self, host: ResolvedHost) -> Connected:
        """Connect to one host. Raises HostError."""
        return all_or_raise(self.reach([host], lambda connected: connected))[host.name]

    def new_connection(self, name: str) -> Transport:
        """Open a further connection to a reached host, under no lease; the caller closes it.

        Raises HostError.
        """
        host = self[name].host
        return TRANSPORTS[host.transport](host, self._ask)

    def each(
        self, names: Iterable[str], work: Callable[[Connected], T]
    ) -> dict[str, T | RayclusterError]:
        """Call `work` with each named host that was reached, at once."""
        return self._gather({n: self._pool.submit(work, self[n]) for n in names})

    def __getitem__(self, name: str) -> Connected:
        """Return a reached host. Raises the error that kept it from being reached."""
        reached = self._reached.get(name)
        if reached is None:
            raise HostError("is not connected", where=name)
        if isinstance(reached, RayclusterError):
            raise reached
        return reached

    @staticmethod
    def _gather(futures: Mapping[str, Future[T]]) -> dict[str, T | RayclusterError]:
        while wait(futures.values(), timeout=1.0).not_done:
            pass  # a signal that comes just before a wait is heeded after it
        results: dict[str, T | RayclusterError] = {}
        for name, future in futures.items():
            error = future.exception()
            if error is None:
                results[name] = future.result()
            elif isinstance(error, RayclusterError):
                results[name] = error
            else:
                raise error
        return results


def all_or_raise(results: Mapping[str, T | RayclusterError]) -> dict[str, T]:
    """Return the results; raise the error, or one error that says all, when there is any."""
    raise_together([r for r in results.values() if isinstance(r, RayclusterError)])
    return {n: r for n, r in results.items() if not isinstance(r, RayclusterError)}
