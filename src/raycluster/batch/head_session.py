"""The head as a place for a job, on a connection that is made again when it breaks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, Self, TypeVar

from raycluster.core.errors import AppError, ConnectionLostError, HostError, UnreachableError
from raycluster.core.interfaces import Shell, Tell
from raycluster.hosts.session import OpenedSpec


def site(opened: OpenedSpec) -> Callable[[], AbstractContextManager[BatchHead]]:
    """Return what connects to the head: raises HostError, and AppError where no model runs."""

    @contextmanager
    def connect() -> Iterator[BatchHead]:
        from raycluster.batch.head_session import BatchHead
        from raycluster.hosts.dashboard import dashboard
        from raycluster.hosts.ray_api import RayJobs
        from raycluster.observe.cluster import observe
        from raycluster.serve.settings import ROUTER

        spec = opened.spec
        with opened.fleet() as fleet:
            state = observe(spec, fleet)
            head = fleet[spec.head_host.name]
            if problem := state.problem(head.host):
                raise problem
            if not state.runs(head.host) or state.token is None:
                raise HostError(
                    "the head is not running", where=head.host.name, hint="raycluster up"
                )
            if state.head_problem:
                raise state.head_problem
            if not state.apps:
                raise AppError(
                    "no model is deployed", where=spec.cluster.name, hint="raycluster up"
                )
            with dashboard(head, spec.ports.dashboard, state.token) as client:
                yield BatchHead(
                    head.host.name,
                    head.runtime.inside(head.host.role),
                    RayJobs(head.host.name, client),
                    head.address,
                    spec.ports.api,
                    sum(app.serving for app in state.apps if app.name != ROUTER),
                )

    return connect


T = TypeVar("T")
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between attempts to connect again; the last one repeats."""
OVER = frozenset({"", "STOPPED", "SUCCEEDED", "FAILED"})
"""How a job stands, in Ray's words, that does not run."""


class JobRunner(Protocol):
    """Ray's jobs; see RayJobs."""

    def submit(self, job: str, command: str) -> None: ...
    def status(self, job: str) -> str: ...
    def said(self, job: str) -> str: ...
    def stop(self, job: str) -> None: ...
    def forget(self, job: str) -> None: ...


@dataclass(frozen=True)
class BatchHead:
    """The head: `shell` is inside its box, `address` what other nodes dial, `port` Serve's HTTP.

    `replicas` are those that serve at the moment.
    """

    host: str
    shell: Shell
    jobs: JobRunner
    address: str
    port: int
    replicas: int

    def over(self, job: str) -> bool:
        """Tell whether a job does not run any more."""
        return self.jobs.status(job) in OVER


Open = Callable[[], AbstractContextManager[BatchHead]]
"""Connects; raises HostError, and AppError where nothing serves."""


class ReconnectingSession:
    """Calls things with the place; after a break it connects again and calls once more.

    Gives up after `patience` seconds. What is called must bear to be called twice.
    """

    def __init__(self, open_place: Open, patience: float, tell: Tell) -> None:
        self._open = open_place
        self._patience = patience
        self._tell = tell
        self._resources = ExitStack()
        self._place: BatchHead | None = None

    def __enter__(self) -> Self:
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def host(self) -> str:
        """The head's name."""
        return self._place.host if self._place else ""

    def __call__(self, work: Callable[[BatchHead], T]) -> T:
        """Return what `work` returns. Raises HostError when the way does not come back."""
        lost_at, tries = 0.0, 0
        while True:
            try:
                place = self._connect()
                result = work(place)
            except (ConnectionLostError, UnreachableError) as error:
                now = time.monotonic()
                if not lost_at:
                    lost_at = now
                    self._tell(f"connection lost ({error.what}): connecting again")
                if now - lost_at > self._patience:
                    raise HostError(
                        error.what,
                        where=self.host,
                        hint="the job keeps running; the same command attaches to it again",
                    ) from error
                self._drop()
                time.sleep(DELAYS[min(tries, len(DELAYS) - 1)])
                tries += 1
            else:
                if lost_at:
                    self._tell(f"connected again after {time.monotonic() - lost_at:.1f} s")
                return result

    def _connect(self) -> BatchHead:
        if self._place is None:
            self._place = self._resources.enter_context(self._open())
        return self._place

    def _drop(self) -> None:
        self._place = None
        resources, self._resources = self._resources, ExitStack()
        try:
            resources.close()
        except HostError:
            return  # it was broken anyway


@contextmanager
def terminated() -> Iterator[None]:
    """Inside it SIGTERM is what Ctrl-C is."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: signals are another's matter
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
