"""Whether a process on a host belongs to somebody else's cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Found
from raycluster.spec import ClusterSpec
from raycluster.spec.models import login_name

MOST = 200  # characters of an owner, which has to be written as it is


def of_another(
    spec: ClusterSpec, where: str, found: Iterable[Found], firewall_owner: str = ""
) -> HostError | None:
    """Return the error for a host on which somebody else has a cluster of this name."""
    named, ours = spec.cluster.owner, {spec.owner}
    if not named:
        ours.add(login_name())  # as it was noted before the machine was
    owners = (*((each.owner, each.started) for each in found), (firewall_owner, ""))
    theirs = next((each for each in owners if each[0] and each[0] not in ours), None)
    if theirs is None:
        return None
    owner, started = clean(theirs[0], MOST), clean(theirs[1], 40)
    since = f" (running since {started})" if started else ""
    us = (
        f"this spec has owner {named}"
        if named
        else f"this spec names none, and you are {spec.owner}"
    )
    return HostError(
        f"the cluster {spec.cluster.name} there belongs to {owner}{since}, but {us}",
        where=where,
        hint="choose another name and other ports for yours; if it is the same cluster, everybody "
        f"who shares the spec must set `owner = {json.dumps(owner)}` under [cluster]",
    )
