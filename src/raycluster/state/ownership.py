"""Whether a process on a host belongs to somebody else's cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Found
from raycluster.spec import ClusterSpec


def of_another(
    spec: ClusterSpec, where: str, found: Iterable[Found], firewall_owner: str = ""
) -> HostError | None:
    """Return the error for a host on which somebody else has a cluster of this name."""
    owners = (*(each.owner for each in found), firewall_owner)
    owner = next((clean(o, 80) for o in owners if o and o != spec.owner), None)
    if owner is None:
        return None
    return HostError(
        f"the cluster {spec.cluster.name} there belongs to {owner}, but this spec has owner "
        f"{spec.owner or 'nobody'}",
        where=where,
        hint="choose another name and other ports for yours; if it is the same cluster, everybody "
        f"who shares the spec must set `owner = {json.dumps(owner)}` under [cluster]",
    )
