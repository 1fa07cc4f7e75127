"""All that is known beforehand of a change, its costs among it; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raycluster.core.errors import HostError, SpecError, raise_together
from raycluster.plan.actions import Action, Deploy
from raycluster.plan.forecast.downloads import (
    Download,
    absent,
    downloads,
    tight,
    too_little_room,
    withheld,
)
from raycluster.plan.forecast.fits import (
    ModelForecast,
    Problem,
    forecast_models,
    forecast_notes,
    together,
    too_few_cpus,
    unseen_gpus,
)
from raycluster.plan.forecast.interruptions import Interruption, interruptions
from raycluster.plan.planner import removed_hosts
from raycluster.serve.model_refs import ModelRef
from raycluster.serve.settings import slugs
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.state.cluster import ClusterState
from raycluster.state.inventory import Inventory
from raycluster.state.members import Member


@dataclass(frozen=True)
class CostChange:
    """Prices per hour in `currency`: of all hosts, and what joining and leaving hosts change.

    `unpriced` are hosts without a price, which count as nothing.
    """

    currency: str
    per_hour: float
    change: float
    unpriced: tuple[str, ...] = ()


def cost(spec: ClusterSpec, state: ClusterState) -> CostChange | None:
    """Return what the cluster will cost, or None where no host has a price."""
    if all(host.price_per_hour is None for host in spec.hosts):
        return None
    leaving = [former.member for former in removed_hosts(spec, state)]
    joining = [host for host in spec.hosts if not state.hosts[host.name].found]
    prices = [(h.name, h.price_per_hour) for h in spec.hosts]
    prices += [(m.name, m.price_per_hour) for m in leaving]
    return CostChange(
        currency=spec.cluster.currency,
        per_hour=_sum(spec.hosts),
        change=_sum(joining) - _sum(leaving),
        unpriced=tuple(name for name, price in prices if price is None),
    )


def _sum(hosts: Iterable[ResolvedHost | Member]) -> float:
    return round(sum(host.price_per_hour or 0 for host in hosts), 6)


@dataclass(frozen=True)
class Forecast:
    """What a change needs and costs: `problems` keep it from working, `warnings` may.

    `notes` are choices that work, and that a person should know of.
    """

    models: tuple[ModelForecast, ...] = ()
    downloads: tuple[Download, ...] = ()
    interruptions: tuple[Interruption, ...] = ()
    cost: CostChange | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()


def forecast(
    spec: ClusterSpec,
    state: ClusterState,
    actions: Sequence[Action],
    seen: Inventory,
    wanted: Mapping[str, tuple[ModelRef, ...]],
) -> Forecast:
    """Return what the actions need and cost; `wanted` tells what each starting model reads."""
    starting = tuple(wanted)
    read = {name: found[0] for name, found in wanted.items() if found}
    models = forecast_models(spec, seen, read, starting)
    every = tuple(dict.fromkeys(w for found in wanted.values() for w in found))
    fetched = downloads(seen, every)
    problems = [p for model in models if (p := model.problem)]
    if shared := together(spec, seen, models):
        problems.append(shared)
    problems += too_few_cpus(spec, seen, models)
    return Forecast(
        models=models,
        downloads=fetched,
        interruptions=interruptions(spec, state, actions, seen.seconds),
        cost=cost(spec, state),
        problems=(*problems, *withheld(seen), *too_little_room(fetched)),
        warnings=(
            *(w for model in models for w in model.warnings),
            *absent(seen, every),
            *tight(fetched),
        ),
        notes=(*forecast_notes(spec, seen, starting), *unseen_gpus(spec, seen)),
    )


def at_rest(spec: ClusterSpec, state: ClusterState, actions: Sequence[Action]) -> Forecast:
    """Return the forecast of a change for which nothing has to be looked at: nothing starts."""
    return Forecast(interruptions=interruptions(spec, state, actions, {}), cost=cost(spec, state))


def starting_models(
    spec: ClusterSpec, state: ClusterState, actions: Sequence[Action]
) -> tuple[str, ...]:
    """Return the models of which replicas start anew: all where it is not known what runs."""
    names = slugs([model.name for model in spec.models])
    deploys = [action for action in actions if isinstance(action, Deploy)]
    if not state.apps:
        return tuple(names)
    changed = {slug for deploy in deploys for slug in deploy.rollout.costs}
    running = {app.name for app in state.apps if app.running}
    return tuple(n for n, slug in names.items() if slug in changed or slug not in running)


def refuse(forecast: Forecast, hosts: Collection[str]) -> None:
    """Raise HostError or SpecError where a change cannot work: nothing has been started then.

    `hosts` are the names of the hosts, of which a problem may be.
    """
    found = forecast.problems
    if not found:
        return
    kind = HostError if all(p.where in hosts for p in found) else SpecError
    raise_together([kind(p.what, where=p.where, hint=p.hint) for p in found])
