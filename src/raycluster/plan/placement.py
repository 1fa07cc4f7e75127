"""Which hosts have the GPUs that models ask for; pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from raycluster.core.accelerators.choice import chosen, lack
from raycluster.core.accelerators.requirement import GpuRequirement, read_requirement
from raycluster.core.accelerators.values import Accelerators, described
from raycluster.core.errors import SpecError, raise_together
from raycluster.plan.forecast.fits import Problem
from raycluster.spec import ClusterSpec, Model, ResolvedHost
from raycluster.state.cluster import App


def place(
    spec: ClusterSpec, gpus: Mapping[str, Accelerators], apps: Iterable[App] = ()
) -> tuple[ClusterSpec, tuple[Problem, ...]]:
    """Return the spec with `hosts` for each model that says `gpu`, and what to know of that.

    `gpus` are those of the hosts that were seen. Of another host, or one whose driver does not
    answer, is known what the applications were deployed with. Raises SpecError for all models that
    no host can take.
    """
    known = _known(apps)
    models, notes, wrong = list[Model](), list[Problem](), list[SpecError]()
    for model in spec.models:
        if not model.gpu:
            models.append(model)
            continue
        wanted, labels = read_requirement(model.gpu), known.get(model.gpu, set())
        able = [host for host in spec.hosts if model.may_run_on(host.name)]
        told = {h.name: _refusal(h, wanted, gpus.get(h.name), h.label in labels) for h in able}
        placed = tuple(name for name, (why, _) in told.items() if not why)
        models.append(model.model_copy(update={"hosts": placed}))
        if placed:
            notes += [
                Problem(name, f"takes no replica of {model.name}: it {why}", hint)
                for name, (why, hint) in told.items()
                if hint
            ]
            continue
        reasons = "; ".join(f"{name} {why}" for name, (why, _) in told.items())
        hints = dict.fromkeys(hint for _, hint in told.values() if hint)
        hint = "; ".join((*hints, "change `gpu` of the model, or add such a host"))
        what = f"gpu = {json.dumps(model.gpu)} fits no host: {reasons}"
        wrong.append(SpecError(what, where=model.name, hint=hint))
    raise_together(wrong)
    return spec.model_copy(update={"models": tuple(models)}), tuple(notes)


def _refusal(
    host: ResolvedHost, wanted: GpuRequirement, found: Accelerators | None, known: bool
) -> tuple[str, str]:
    """Return why a host takes no replica, and what can be done about it; two "" where it does.

    Ray gives a replica any GPUs of its host, so all have to fit.
    """
    if host.gpus == 0:
        return "has gpus = 0", ""
    if found is None:
        return ("", "") if known else ("was not seen", "run this again when it responds")
    if trouble := lack(host.gpus, found):
        return ("", "") if known else (f"does not tell its GPUs: {trouble.what}", trouble.hint)
    devices = chosen(host.gpus, found)
    fitting = sum(map(wanted.fits, devices))
    if devices and fitting == len(devices):
        return "", ""
    if not fitting:
        return f"has {described(devices) or 'no GPU'}", ""
    return (
        f"has {described(devices)}, of which {fitting} would do, and Ray may choose any",
        "list those that fit in `gpus` of the host",
    )


def _known(apps: Iterable[App]) -> dict[str, set[str]]:
    """Return, by what models asked for, the labels of the hosts that were found to have it."""
    found: dict[str, set[str]] = {}
    for app in apps:
        told = (app.config.get("args") or {}).get("model") or {}
        if isinstance(gpu := told.get("gpu"), str) and gpu:
            found.setdefault(gpu, set()).update((told.get("hosts") or {}).values())
    return found
