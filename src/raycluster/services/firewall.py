"""nftables rules of a host: the cluster's hosts get in, others reach SSH and the gateway alone."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network

from raycluster.core import templates
from raycluster.services.gateway import has_gateway
from raycluster.services.prometheus import HEAD_PORTS
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost

ID_DIGITS = 12
RULES_ID = rf"([0-9a-f]{{{ID_DIGITS}}})?"
"""What `read_script` prints: the digits, or nothing without rules."""
_OWNER = "# owner: "
"""Begins the line of the rules that tells whose they are, after which `read_script` prints it."""
REMOVED = "removed"
"""The last word of `remove_script` where there were rules."""
SSH = 22
MOST_OWNER = 30000
CONFIRM_S = 30
"""Seconds after which a host takes rules back by itself that nobody confirmed."""


@dataclass(frozen=True)
class Around:
    """The ports of a host that are not the cluster's: sshd's, and of other services."""

    ssh: frozenset[int] = frozenset()
    tcp: frozenset[int] = frozenset()
    udp: frozenset[int] = frozenset()


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


def gateway_is_open(spec: ClusterSpec, host: ResolvedHost) -> bool:
    """Tell whether clients are meant to reach a gateway on the host."""
    gate = spec.gateway
    return gate is not None and has_gateway(spec, host) and not ip_address(gate.address).is_loopback


def ruleset(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[str, str]:
    """Return the host's rules for `nft -f`, and twelve hexadecimal digits that tell them apart.

    The digits stand among the rules as the name of an empty chain, by which they are found again.
    """
    own = spec.firewall
    return _rendered(
        table=table(spec.cluster.name),
        friends=(*wiring.addresses.values(), *own.allow_from),
        ports=cluster_ports(spec),
        ssh=tuple(sorted({SSH, host.ssh.port or SSH})),
        open=(spec.ports.gateway,) if gateway_is_open(spec, host) else (),
        allowed=tuple(sorted(set(own.allow_ports))),
    )


@lru_cache(maxsize=8)  # most hosts of a cluster have the same rules
def _rendered(
    *, friends: tuple[str, ...], ports: tuple[tuple[int, int], ...], **values: str | tuple[int, ...]
) -> tuple[str, str]:
    listed = {
        "friends": _by_family(friends),
        "ports": [f"{a}-{b}" if a != b else str(a) for a, b in ports],
    }
    body = templates.render("nftables/cluster.nft", id="", **listed, **values)
    digits = hashlib.sha256(body).hexdigest()[:ID_DIGITS]
    return templates.render("nftables/cluster.nft", id=digits, **listed, **values).decode(), digits


def exemptions(cluster: str, around: Around) -> str:
    """Return the lines that follow the rules of a host: what else listens there stays open."""
    sets = {"ssh": around.ssh, "kept_tcp": around.tcp, "kept_udp": around.udp}
    return "".join(
        f"add element inet {table(cluster)} {name} {{ {', '.join(map(str, sorted(ports)))} }}\n"
        for name, ports in sets.items()
        if ports
    )


def owned(owner: str) -> str:
    """Return the line that follows the rules of a host: whose they are."""
    return f"{_OWNER}{json.dumps(owner)}\n"


def owner_in(said: str) -> str:
    """Return the owner in what `read_script` printed after the digits, "" where there is none."""
    with suppress(ValueError):
        owner = json.loads(said[:MOST_OWNER])
        return owner if isinstance(owner, str) else ""
    return ""


def wanted(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> tuple[str, str]:
    """Return the rules and their digits; both empty where the firewall is somebody else's."""
    return ruleset(spec, host, wiring) if spec.firewall.manage else ("", "")


def _by_family(addresses: Iterable[str]) -> Mapping[str, list[str]]:
    networks = {ip_network(address) for address in addresses if address}
    known = sorted(networks, key=lambda n: (n.version, int(n.network_address), n.prefixlen))
    told = [(n.version, str(n).removesuffix(f"/{n.max_prefixlen}")) for n in known]
    return {name: [n for v, n in told if v == version] for name, version in (("ip", 4), ("ip6", 6))}


def rules_file(cluster: str) -> str:
    """Return the file of the rules; anybody may see that it is there."""
    return f"/etc/raycluster/{table(cluster)}.nft"


def _new(cluster: str, tag: str) -> str:
    """Return the file of rules that are on trial; who moves it away decides about them."""
    return f"{rules_file(cluster)}.{tag}"


def _as_root(script: str, *, when: str = "") -> str:
    """Return a shell script that runs another as root, after a condition that needs no rights."""
    root = 's=; [ "$(id -u)" = 0 ] || s="sudo -n"; '
    run = f'exec $s env PATH="$PATH" sh -c {shlex.quote(script)} sh "$SSH_CONNECTION"'
    return f"PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; {when}{root}{run}"


def _boot(cluster: str) -> str:
    """Return lines that set `unit`, `cron`, and `boot`: which of both loads the rules here.

    Each is a file of its own: what others have in a crontab is not touched.
    """
    name = table(cluster)
    return f"""unit=/etc/systemd/system/{name}.service
wants=/etc/systemd/system/sysinit.target.wants/{name}.service
cron=/etc/cron.d/{name}
boot=; [ ! -d /etc/cron.d ] || boot=$cron
[ ! -d /run/systemd/system ] || boot=$wants
"""


def _former(cluster: str) -> str:
    """Return lines that take the line of earlier releases out of root's crontab."""
    file = rules_file(cluster)
    return f"""if old=$(crontab -l 2>/dev/null) && printf '%s\\n' "$old" | grep -qF {file}; then
  rest=$(printf '%s\\n' "$old" | grep -vF {file})
  if [ -n "$rest" ]; then printf '%s\\n' "$rest" | crontab -; else crontab -r; fi || exit 1
fi
"""


def look_script() -> str:
    """Return a shell script that prints the port of its connection, and what tells sshd's."""
    return _as_root("""set -- $1; [ -z "$4" ] || echo ssh "$4"
sshd -T 2>/dev/null | sed -n 's/^port /ssh /p'
for comm in $(grep -lxE 'sshd|dropbear' /proc/[0-9]*/comm 2>/dev/null); do
  ls -l "${comm%comm}fd" 2>/dev/null | sed -n 's/.*socket:\\[\\([0-9]*\\)\\]$/sshd \\1/p'
done; true""")


def can_script() -> str:
    """Return a shell script that fails where rules could not be written; changes nothing."""
    return _as_root("""command -v nft >/dev/null || { echo "nft is not installed" >&2; exit 127; }
nft list tables >/dev/null""")


def read_script(cluster: str) -> str:
    """Return a shell script that prints the digits of the rules, if they are there whole.

    They are when they are in force, and in the file, and something loads that at boot.
    """
    file, name = rules_file(cluster), table(cluster)
    script = f"""{_boot(cluster)}
owner=$(sed -n 's/^{_OWNER}//p' {file} | head -c {MOST_OWNER})
id=$(nft list table inet {name} 2>/dev/null | sed -n 's/^.*chain id_\\([0-9a-f]*\\) .*$/\\1/p')
[ -n "$id" ] && grep -q "chain id_$id " {file} || id=
[ -n "$boot" ] && [ ! -e "$boot" ] && id=
printf '%s\\n' "$id" "$owner"
"""
    return _as_root(script, when=f"[ -e {file} ] || exit 0; ")


def _take_back(cluster: str, tag: str) -> str:
    """Return lines that end a trial, unless it has been ended: the former rules, or none."""
    file, new = rules_file(cluster), _new(cluster, tag)
    return f"""if mv {new} {new}.refused 2>/dev/null; then
  if [ -e {file} ]; then nft -f {file}; else nft delete table inet {table(cluster)}; fi
  rm -f {new}.refused
fi
"""


def try_script(cluster: str, tag: str, seconds: int = CONFIRM_S) -> str:
    """Return a shell script that puts the rules of its input in force, for so many seconds.

    Then the host takes them back, unless `confirm_script` of the same tag has run.
    """
    file, new = rules_file(cluster), _new(cluster, tag)
    watch = f"""trap '' HUP; i=0
while [ -e {new} ] && [ $((i += 1)) -le {seconds} ]; do sleep 1; done
{_take_back(cluster, tag)}"""
    return _as_root(f"""umask 022
command -v nft >/dev/null || {{ echo "nft is not installed" >&2; exit 127; }}
mkdir -p /etc/raycluster && cat >{new} && nft --check -f {new} || {{ rm -f {new}; exit 1; }}
setsid sh -c {shlex.quote(watch)} </dev/null >/dev/null 2>&1 &
nft -f {new} || {{ rm -f {new}; exit 1; }}
for other in {file}.*; do [ "$other" = {new} ] || rm -f "$other"; done""")


def take_back_script(cluster: str, tag: str) -> str:
    """Return a shell script that ends a trial at once."""
    return _as_root(_take_back(cluster, tag))


def confirm_script(cluster: str, tag: str) -> str:
    """Return a shell script that makes rules on trial last, also over a reboot.

    It prints what a person should know.
    """
    file = rules_file(cluster)
    unit = f"""[Unit]
Description=Firewall rules of the cluster {cluster}
DefaultDependencies=no
Wants=network-pre.target
After=local-fs.target nftables.service
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$(command -v nft) -f {file}
[Install]
WantedBy=sysinit.target"""
    return _as_root(f"""umask 022
mv {_new(cluster, tag)} {file} || {{ echo "the host took them back meanwhile" >&2; exit 1; }}
nft -f {file} || exit 1
{_boot(cluster)}
if [ "$boot" = "$wants" ]; then
  mkdir -p "${{wants%/*}}" && cat >"$unit.new" <<END && mv "$unit.new" "$unit" || exit 1
{unit}
END
  ln -sf "$unit" "$wants" && rm -f "$cron" || exit 1
elif [ -n "$boot" ]; then
  echo "@reboot root PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin nft -f {file}" \
    >"$cron.new" && mv "$cron.new" "$cron" || exit 1
  grep -qxE 'crond?' /proc/[0-9]*/comm 2>/dev/null || boot=
fi
[ -n "$boot" ] || echo "neither systemd nor cron runs here: after a reboot run \\`raycluster up\\`"
{_former(cluster)}""")


def remove_script(cluster: str) -> str:
    """Return a shell script that takes everything back, and prints a word if there was any."""
    file, name = rules_file(cluster), table(cluster)
    script = f"""{_boot(cluster)}
rm -f "$unit" "$wants" "$cron" || exit 1
{_former(cluster)}
nft delete table inet {name} 2>/dev/null
! nft list table inet {name} >/dev/null 2>&1 || {{ echo "they cannot be deleted" >&2; exit 1; }}
rm -f {file} {file}.* || exit 1
rmdir /etc/raycluster 2>/dev/null
echo {REMOVED}"""
    return _as_root(script, when=f"ls {file}* >/dev/null 2>&1 || exit 0; ")
