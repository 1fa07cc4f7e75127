"""What the words of `raycluster logs` mean: processes and replicas, and moments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from raycluster.core.errors import UsageError
from raycluster.serve.settings import slugs
from raycluster.services.processes import processes, roles
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.state.cluster import App, ClusterState

APP, ALL = "app", "all"
_SHORTEST = 4
_ID = re.compile(rf"[a-z0-9]{{{_SHORTEST},}}")


@dataclass(frozen=True)
class ReplicaChoice:
    """Replicas of one application, or of all; `replica` is the beginning of one's id, or ""."""

    app: str = ""
    replica: str = ""


@dataclass(frozen=True)
class Chosen:
    """What should be read: processes as host and role, and replicas."""

    processes: tuple[tuple[ResolvedHost, str], ...] = ()
    replicas: tuple[ReplicaChoice, ...] = ()


def targets(spec: ClusterSpec) -> tuple[str, ...]:
    """Return the words that stand for something whatever state the cluster is in."""
    return tuple(dict.fromkeys((ALL, APP, *processes(spec), *(m.name for m in spec.models))))


def choose(spec: ClusterSpec, words: Sequence[str]) -> Chosen:
    """Return what the words stand for; a word that may be a replica's id is taken for one.

    Raises UsageError.
    """
    there: dict[tuple[str, str], tuple[ResolvedHost, str]] = {}
    replicas: list[ReplicaChoice] = []
    for word in words:
        found, wanted = _processes(spec, word), _replicas(spec, word)
        if not found and not wanted:
            if not _ID.fullmatch(word):
                raise unknown(spec, word)
            wanted = [ReplicaChoice(replica=word)]
        there |= {(host.name, role): (host, role) for host, role in found}
        replicas += wanted
    return Chosen(tuple(there.values()), tuple(dict.fromkeys(replicas)))


def _processes(spec: ClusterSpec, word: str) -> list[tuple[ResolvedHost, str]]:
    if word == ALL:
        return [(host, role) for host in spec.hosts for role in roles(spec, host)]
    if named := [host for host in spec.hosts if host.name == word]:
        return [(named[0], named[0].role)]
    place, _, role = word.rpartition("/")
    if place in {host.name for host in spec.hosts}:
        return [(_placed(spec, place, role), role)]
    return [(h, word) for h in spec.hosts if word in roles(spec, h) and word not in RAY_ROLES]


def _placed(spec: ClusterSpec, place: str, role: str) -> ResolvedHost:
    host = next(h for h in spec.hosts if h.name == place)
    if role in roles(spec, host):
        return host
    known = ", ".join(f"{place}/{each}" for each in roles(spec, host))
    raise UsageError(f"{place} runs no {role!r}", hint=f"one of {known}")


def _replicas(spec: ClusterSpec, word: str) -> list[ReplicaChoice]:
    if word in (APP, ALL):
        return [ReplicaChoice()]
    names = slugs([m.name for m in spec.models])
    if word in names:
        return [ReplicaChoice(names[word])]
    model, _, number = word.rpartition("#")
    if model not in names:
        return []
    if not number.isdecimal() or int(number) == 0:
        raise UsageError(f"{number!r} is not a replica number", hint=f"{model}#1 is the first")
    return [ReplicaChoice(names[model], f"#{number}")]


def numbered(spec: ClusterSpec, state: ClusterState, wanted: ReplicaChoice) -> ReplicaChoice:
    """Return the same with the id of the replica of that number, in the order of `status --json`.

    Raises UsageError where there is none.
    """
    if not wanted.replica.startswith("#"):
        return wanted
    number = int(wanted.replica[1:])
    app = next((a for a in state.apps or () if a.name == wanted.app), None)
    there = app.replicas if app else ()
    if number > len(there):
        names = {slug: name for name, slug in slugs([m.name for m in spec.models]).items()}
        raise UsageError(
            f"{names.get(wanted.app, wanted.app)} has {_count(len(there), 'replica')}",
            where=f"#{number}",
            hint="raycluster status --json lists them",
        )
    return ReplicaChoice(wanted.app, there[number - 1].replica_id)


def ids(apps: Iterable[App], address: str) -> dict[str, str]:
    """Return the ids of the replicas that run on the node of this address, by process id."""
    return {
        str(r.pid): r.replica_id for a in apps for r in a.replicas if r.pid and r.address == address
    }


def unknown(spec: ClusterSpec, word: str) -> UsageError:
    """Return the error for a word that stands for nothing."""
    return UsageError(
        f"{word!r} is not a host, service, model or replica in this cluster",
        hint=f"one of {', '.join(targets(spec))}, MODEL#NUMBER or a replica's id",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(d|h|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(d|h|m|s)")


def seconds_ago(text: str, now: float) -> float:
    """Return how many seconds before `now`, in seconds since 1970, a text means.

    A number alone is in seconds; a moment without a zone is one of this machine's zone. Raises
    UsageError.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a valid time",
            where="--since",
            hint="use a duration such as 10m or 1h30m, or a time such as 2026-11-26T10:00:00Z",
        ) from None
    if moment > now:
        raise UsageError(f"{text} is in the future", where="--since")
    return now - moment
