"""Which of a host's GPUs the spec means, and what keeps it from having them; pure."""

from __future__ import annotations

from collections.abc import Iterable

from raycluster.core.accelerators.values import Accelerators, Choice, Device, Trouble

WITHOUT = "or set gpus = 0 to use this host without its GPUs"
_SHOWN = 16


def named(choice: Choice) -> int | None:
    """Return how many GPUs a spec says by itself; None where the host has to tell."""
    if choice == "all":
        return None
    return len(choice) if isinstance(choice, tuple) else choice


def visible(choice: Choice) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES is for this choice; None leaves all in sight."""
    if choice == "all":
        return None
    return ",".join(map(str, choice if isinstance(choice, tuple) else range(choice)))


def count(choice: Choice, found: Accelerators) -> int:
    """Return how many GPUs of a host the cluster uses."""
    said = named(choice)
    return len(found.devices) if said is None else said


def chosen(choice: Choice, found: Accelerators) -> tuple[Device, ...]:
    """Return the devices that the cluster uses, as far as they are there."""
    if isinstance(choice, tuple):
        known = {key: d for d in found.devices for key in (d.uuid, d.index) if key}
        return tuple(known[str(each)] for each in choice if str(each) in known)
    return found.devices if choice == "all" else found.devices[:choice]


def lack(choice: Choice, found: Accelerators) -> Trouble | None:
    """Return what keeps a host from giving the GPUs that the spec wants, with the next step.

    GPUs that answer can be used beside one that does not only where they are named: without that,
    nobody can say which ones Ray and CUDA would count.
    """
    if choice == 0:
        return None
    if isinstance(choice, tuple):
        return _unnamed(choice, found)
    if found.problem:
        return Trouble(found.problem.what, _other_ways(found.problem.hint, found))
    if found.slices:
        return Trouble(
            f"its GPUs are divided by MIG, and gpus = {_toml(choice)} does not say which slices "
            "to use",
            f"name them, each with its UUID: gpus = {_listed(d.uuid for d in found.devices)}",
        )
    if isinstance(choice, int) and choice > len(found.devices):
        return Trouble(
            f"gpus = {choice}, but the host has {len(found.devices)}",
            "correct `gpus`, or run nvidia-smi on the host",
        )
    return None


def _unnamed(choice: tuple[int, ...] | tuple[str, ...], found: Accelerators) -> Trouble | None:
    there = {str(d.index) for d in found.devices} | {d.uuid for d in found.devices if d.uuid}
    missing = [each for each in choice if str(each) not in there]
    if not missing:
        return None
    words = ", ".join(map(str, missing))
    if found.problem:
        return Trouble(
            f"gpus names {words}, which does not respond: {found.problem.what}",
            _other_ways(found.problem.hint, found),
        )
    if divided := [d for d in found.slices if d.parent in choice or _index(d) in missing]:
        return Trouble(
            f"gpus names {words}, which is divided into MIG slices",
            f"name slices: gpus = {_listed(d.uuid for d in divided)}",
        )
    devices = ", ".join(f"{d.index} ({d.name}, {d.uuid})" for d in found.devices[:_SHOWN])
    return Trouble(
        f"gpus names {words}, but the host has {devices or 'no GPU'}",
        "correct `gpus`: use indices or UUIDs as listed by `nvidia-smi -L` on the host",
    )


def _index(device: Device) -> int | None:
    """Return the index of the GPU that a slice is part of."""
    first = device.index.partition(":")[0]
    return int(first) if first.isdecimal() else None


def _other_ways(hint: str, found: Accelerators) -> str:
    others = _listed(d.uuid for d in found.devices)
    named = f"use those that respond: gpus = {others}" if found.devices else ""
    return "; ".join(filter(None, [hint, named, WITHOUT]))


def _listed(words: Iterable[str]) -> str:
    """Return names as a list in TOML."""
    return "[" + ", ".join(f'"{word}"' for word in list(words)[:_SHOWN]) + "]"


def _toml(choice: Choice) -> str:
    return f'"{choice}"' if isinstance(choice, str) else str(choice)
