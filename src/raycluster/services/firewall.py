"""nftables rules for the cluster's ports: its hosts get in, others reach the gateway alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from raycluster import templates
from raycluster.services.gateway import gateway
from raycluster.services.prometheus import HEAD_PORTS
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost

ID_DIGITS = 12


def table(cluster: str) -> str:
    """Return the name of the cluster's table (of the family inet)."""
    return "raycluster_" + cluster.replace("-", "_").replace(".", "_")


def cluster_ports(spec: ClusterSpec) -> tuple[tuple[int, int], ...]:
    """Return first and last of all ports that only the cluster's own hosts have to reach.

    Where Prometheus or Grafana is not asked for, its port may be some other program's.
    """
    seen = spec.monitoring
    runs = {
        "gateway": False,
        "prometheus": seen is not None and seen.prometheus,
        "grafana": seen is not None and seen.grafana,
    }
    single = {port for name, port in spec.ports.single.items() if runs.get(name, True)}
    alone = [(port, port) for port in sorted(single | set(HEAD_PORTS.values()))]
    return (*alone, *spec.ports.ranges.values())


def gateway_is_open(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> bool:
    """Tell whether clients are meant to reach a gateway on the host."""
    gate = spec.gateway
    if gate is None or gateway(spec, host, wiring) is None:
        return False
    return not ip_address(gate.address).is_loopback


def ruleset(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[str, str]:
    """Return the host's rules for `nft -f`, and twelve hexadecimal digits that tell them apart.

    The digits stand among the rules as the name of an empty chain, by which they are found again.
    """
    values = {
        "table": table(spec.cluster.name),
        "peers": _by_family(wiring.addresses.values()),
        "ports": [f"{a}-{b}" if a != b else str(a) for a, b in cluster_ports(spec)],
        "gateway": spec.ports.gateway,
        "open": gateway_is_open(spec, host, wiring),
    }
    body = templates.render("nftables/cluster.nft", id="", **values)
    digits = hashlib.sha256(body).hexdigest()[:ID_DIGITS]
    return templates.render("nftables/cluster.nft", id=digits, **values).decode(), digits


def wanted(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[str, str]:
    """Return the rules and their digits; both empty where the firewall is somebody else's."""
    return ruleset(spec, host, wiring) if spec.firewall.manage else ("", "")


def _by_family(addresses: Iterable[str]) -> Mapping[str, list[str]]:
    known = sorted({ip_address(a) for a in addresses if a}, key=lambda a: (a.version, int(a)))
    return {
        "ip": [str(a) for a in known if a.version == 4],
        "ip6": [str(a) for a in known if a.version == 6],
    }


def _file(cluster: str) -> str:
    """Return the file of the rules; anybody may see that it is there."""
    return f"/etc/raycluster/{table(cluster)}.nft"


_ROOT = 'PATH=$PATH:/usr/sbin:/sbin; s=; [ "$(id -u)" = 0 ] || s="sudo -n"; '


def read_script(cluster: str) -> str:
    """Return a shell script that prints the digits of the rules that are in force, if any are."""
    name = table(cluster)
    show = f"$s nft list table inet {name} 2>/dev/null"
    found = f"{show} | sed -n 's/^.*chain id_\\([0-9a-f]*\\) .*$/\\1/p'; true"
    return f"[ -e {_file(cluster)} ] || exit 0; {_ROOT}{found}"


def write_script(cluster: str) -> str:
    """Return a shell script that puts the rules of its input in force, all or none of them.

    They are kept in /etc/raycluster too, and root's crontab loads them again at boot.
    """
    file = _file(cluster)
    return f"""{_ROOT}
command -v nft >/dev/null || {{ echo "nft is not installed" >&2; exit 127; }}
$s mkdir -p /etc/raycluster && $s tee {file} >/dev/null && $s nft -f {file} || exit 1
command -v crontab >/dev/null || {{ echo "no crontab: not loaded again at boot"; exit 0; }}
line="@reboot PATH=/usr/sbin:/sbin:/usr/bin:/bin nft -f {file}"
$s crontab -l 2>/dev/null | grep -qxF "$line" && exit 0
{{ $s crontab -l 2>/dev/null | grep -vF "{file}"; echo "$line"; }} | $s crontab -
"""


def remove_script(cluster: str) -> str:
    """Return a shell script that takes everything back, and prints a word if there was any."""
    name = table(cluster)
    file = _file(cluster)
    return f"""[ -e {file} ] || exit 0; {_ROOT}
$s nft delete table inet {name} 2>/dev/null
if command -v crontab >/dev/null && $s crontab -l 2>/dev/null | grep -qF {file}; then
  rest=$($s crontab -l | grep -vF {file})
  if [ -n "$rest" ]; then printf '%s\\n' "$rest" | $s crontab -; else $s crontab -r; fi
fi
$s rm -f {file} && $s rmdir /etc/raycluster 2>/dev/null
! $s nft list table inet {name} >/dev/null 2>&1 && [ ! -e {file} ] && echo removed
"""
