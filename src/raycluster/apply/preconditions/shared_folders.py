"""Whether hosts have one folder between them: a home on the network, seen by several hosts."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from raycluster.core.errors import HostError, RayclusterError
from raycluster.hosts.fleet import Connected, Fleet
from raycluster.spec import ClusterSpec

_NEAREST = 'd=$1; while [ ! -d "$d" ]; do d=$(dirname -- "$d"); done; '
_LEAVE = f'{_NEAREST}umask 077; : > "$d/$2"'
_LIST = f'{_NEAREST}cd "$d" && for each in "$2"*; do printf "%s\\n" "$each"; done'
_TAKE = f'{_NEAREST}rm -f -- "$d/$2"'


def check_folders(spec: ClusterSpec, fleet: Fleet, names: Collection[str]) -> None:
    """Raise HostError where two of the hosts keep the cluster's files in one and the same folder.

    Each leaves a file with a random name there, and looks for those of the others. A host that
    cannot write there is left to who looks at that.
    """
    hosts = [h for h in spec.hosts if h.folder and h.name in names]
    if len(hosts) < 2:
        return
    mark = f".raycluster-{secrets.token_hex(8)}-"
    number = {host.name: f"{mark}{n}." for n, host in enumerate(hosts)}
    folder = {host.name: host.folder for host in hosts}

    def ask(connected: Connected, script: str, file: str) -> str:
        argv = ("sh", "-c", script, "sh", connected.host.folder, file)
        return connected.transport.run(argv).text

    fleet.check()
    fleet.each(number, lambda c: ask(c, _LEAVE, number[c.host.name]))
    try:
        seen = fleet.each(number, lambda c: ask(c, _LIST, mark))
    finally:
        fleet.each(number, lambda c: ask(c, _TAKE, number[c.host.name]))
    for name, told in seen.items():
        lines = [] if isinstance(told, RayclusterError) else told.splitlines()
        for other in (each for each in number if each != name and number[each] in lines):
            raise HostError(
                f"its folder {folder[name]} is shared with {other}, but each host needs its own",
                where=name,
                hint="if the home folder is on a network file system, set `folder` in [runtime] to "
                "one on a local disk of each host",
            )
