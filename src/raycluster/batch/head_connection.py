"""The cluster's head as a place where `batch --offline` runs a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from raycluster.core.errors import AppError, HostError
from raycluster.hosts.session import OpenedSpec

if TYPE_CHECKING:
    from raycluster.batch.head_session import BatchHead


def site(opened: OpenedSpec) -> Callable[[], AbstractContextManager[BatchHead]]:
    """Return what connects to the head: raises HostError, and AppError where no model runs."""

    @contextmanager
    def connect() -> Iterator[BatchHead]:
        from raycluster.batch.head_session import BatchHead
        from raycluster.hosts.dashboard import dashboard
        from raycluster.hosts.ray_jobs import RayJobs
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
