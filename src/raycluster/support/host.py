"""What one host tells: its machine, Docker, our processes' logs, Ray's own logs, metrics."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from raycluster.core.accelerators import nvidia
from raycluster.core.errors import HostError
from raycluster.core.interfaces import PYTHON, ImageStore
from raycluster.core.untrusted import end_of, members, read_json
from raycluster.hosts.fleet import Connected
from raycluster.hosts.http import http_client
from raycluster.observe.facts import read_gpus
from raycluster.observe.replica_endpoints import LISTENING, http_ports, listening
from raycluster.services.processes import roles
from raycluster.services.ray_node import RAY_ROLES
from raycluster.spec import ClusterSpec
from raycluster.support import on_node
from raycluster.support.archive import FILE, ArchiveParts
from raycluster.support.redact import secret_values, shown_variables

if TYPE_CHECKING:
    import httpx

    from raycluster.core.interfaces import Shell

LINES = 5000  # of a process's log
TIMEOUT_S = 30.0
METRICS_S = 4.0
RAY_FILE, RAY_ALL = 256 * 1024, 4 * 1024 * 1024

_SYSTEM = (
    nvidia.FIND.replace("@/", "/")
    + r"""
show() { echo; echo "## $*"; "$@" 2>&1 | tail -n 400; }
show uname -a; show cat /etc/os-release; show date -u; show uptime; show nproc; show free -m
show df -hP; show df -iP /; show ulimit -a; show cat /proc/meminfo; show cat /proc/loadavg
show sh -c 'grep -m1 "model name" /proc/cpuinfo'; show ss -ltn; show ip -brief address
show nvidia-smi; show nvidia-smi -q -d ECC,TEMPERATURE,POWER,PERFORMANCE; show rocm-smi
show cat /proc/driver/nvidia/version; show cat /proc/self/cgroup
show ps -e -o pid,ppid,user,rss,pcpu,etime,comm
show sh -c 'dmesg -T | tail -n 200'
"""
)
_DOCKER = r"""
command -v docker >/dev/null || { echo "no docker command found"; exit 0; }
show() { echo; echo "## $*"; "$@" 2>&1 | tail -n 2000; }
# Fields by their names: commands, variables and proxies of containers may hold anybody's secrets.
show docker version; show docker images
show docker info --format '{{json .ServerVersion}} {{json .Driver}} {{json .DockerRootDir}}
{{json .LoggingDriver}} {{json .CgroupDriver}} {{json .CgroupVersion}} {{json .KernelVersion}}
{{json .OperatingSystem}} {{json .Architecture}} {{json .NCPU}} {{json .MemTotal}}
{{json .Runtimes}} {{json .DefaultRuntime}} {{json .SecurityOptions}} {{json .Warnings}}'
show docker ps -a --format '{{.ID}}  {{.Image}}  {{.Names}}  {{.Status}}  {{.Ports}}'
ours=$(docker ps -aq --filter "label=raycluster.cluster=$0" 2>/dev/null)
[ -z "$ours" ] || show docker inspect --format '{{json .Name}} {{json .Created}} {{json .Image}}
{{json .State}} {{json .RestartCount}} {{json .HostConfig}} {{json .Mounts}}
{{json .NetworkSettings.Ports}} {{json .Config.Image}} {{json .Config.Labels}}' $ours
"""
_CONFIG = r"""
cd "$RAYCLUSTER_ROOT/$0" 2>/dev/null || exit 0
for file in nginx.conf prometheus.yml alerts.yml recording.yml grafana.ini datasources.yaml; do
  [ -f "$file" ] || continue
  echo "## $file, without lines about keys"
  head -c 200000 "$file" | grep -aviE 'bearer|authorization|passw|secret|credential|token|_key'
done; true
"""
# Passwords and keys that a service keeps in files: read to be masked everywhere, for no other use.
_SECRETS = r"""
cd "$RAYCLUSTER_ROOT/$0" 2>/dev/null || exit 0
for file in *password* *secret* *.key key.pem *token*; do
  [ -f "$file" ] && { head -c 20000 "$file"; printf '\0'; }
done; true
"""


def gather(connected: Connected, spec: ClusterSpec, limit: int) -> ArchiveParts:
    """Return what this host tells; what could not be collected is among its problems."""
    parts = ArchiveParts(limit)
    host = connected.host
    _script(parts, "system.txt", connected.transport, ("sh", "-c", _SYSTEM))
    name = spec.cluster.name
    with parts.trying("gpus.json"):
        parts.add("gpus.json", _json(asdict(read_gpus(connected.transport))))
    with parts.trying("docker.txt"):
        env = _docker_of(connected)
        _script(parts, "docker.txt", connected.transport, ("sh", "-c", _DOCKER, name), env)
    there: list[str] = []  # what cannot even be listed would let each look at it wait in vain
    with parts.trying("processes.json"):
        found = connected.runtime.observe()
        parts.add("processes.json", _json([asdict(each) for each in found]))
        there = list(dict.fromkeys([*(each.role for each in found), *roles(spec, host)]))
    for role in there:
        _log(parts, connected, role)
        if role in RAY_ROLES:
            _ray(parts, connected, role)
        else:
            _service(parts, connected, role)
    _metrics(parts, connected, spec)
    return parts


def _docker_of(connected: Connected) -> Mapping[str, str]:
    """Return the environment in which `docker` asks the daemon that the cluster runs in."""
    if not isinstance(connected.runtime, ImageStore):
        return {}
    return {"DOCKER_HOST": f"unix://{connected.runtime.socket_path()}"}


def _script(
    parts: ArchiveParts,
    path: str,
    shell: Shell,
    argv: tuple[str, ...],
    env: Mapping[str, str] | None = None,
) -> None:
    with parts.trying(path):
        parts.add(path, shell.run(argv, env=env, timeout=TIMEOUT_S).stdout)


def _log(parts: ArchiveParts, connected: Connected, role: str) -> None:
    path = f"logs/{role}.log"
    with parts.trying(path):
        log = connected.runtime.logs(role, follow=False, tail=LINES, since=None)
        parts.add(path, end_of(log, 2 * FILE))


def _service(parts: ArchiveParts, connected: Connected, role: str) -> None:
    with parts.trying(f"{role}/"):
        shell = connected.runtime.inside(role)
        kept = shell.run(("sh", "-c", _SECRETS, role), timeout=TIMEOUT_S)
        parts.known |= set(filter(None, kept.text.split("\0")))
        _script(parts, f"{role}/config.txt", shell, ("sh", "-c", _CONFIG, role))
        done = shell.run(("env", "-0"), timeout=TIMEOUT_S)
        pairs = [line.partition("=") for line in done.text.split("\0") if "=" in line]
        _environment(parts, f"{role}/environment.json", {n: v for n, _, v in pairs})


def _ray(parts: ArchiveParts, connected: Connected, role: str) -> None:
    limits = json.dumps({"file": RAY_FILE, "all": min(RAY_ALL, parts.limit // 2)})
    argv = (*PYTHON, "-c", inspect.getsource(on_node), limits)
    with parts.trying(f"{role}/"):
        done = connected.runtime.inside(role).run(argv, timeout=TIMEOUT_S)
        if done.exit_code:
            said = done.error_text
            last = said.rpartition("\n")[2][-300:]
            raise HostError(last or f"ended with {done.exit_code}")
        for name, content in members(done.stdout, "the node", connected.host.name):
            if name == "known":
                told = read_json(content, "the node", connected.host.name)
                parts.known |= {value for each in told if (value := each.text())}
            elif name == "environment.json":
                told = read_json(content, "the node", connected.host.name)
                variables = {name: value.text() for name, value in told.named()}
                _environment(parts, f"{role}/{name}", variables)
            else:
                parts.add(f"{role}/{name}", content)


def _environment(parts: ArchiveParts, path: str, variables: dict[str, str]) -> None:
    """Take an environment's names and some values; what is secret by name is masked all over."""
    parts.known |= set(secret_values(variables))
    parts.add(path, _json(shown_variables(variables)))


def _metrics(parts: ArchiveParts, connected: Connected, spec: ClusterSpec) -> None:
    with (
        parts.trying("metrics/"),
        http_client(connected.transport, spec.ports.metrics, timeout=METRICS_S) as client,
    ):
        done = connected.transport.run(("sh", "-c", LISTENING), timeout=TIMEOUT_S)
        ports = http_ports(spec)
        bases = {port: base for port, base in listening(done.text) if port in ports}
        _scrape(parts, client, "metrics/node.txt", "/metrics")
        for port, base in bases.items():
            _scrape(parts, client, f"metrics/replica-{port}.txt", f"{base}/metrics/")
        others = {"ingress": spec.ports.ingress_metrics}
        if spec.monitoring and spec.monitoring.gpu_exporter_port:
            others["gpus"] = spec.monitoring.gpu_exporter_port
        there = {port for port, _ in listening(done.text)}
        for name, port in others.items():
            if port in there:
                _scrape(parts, client, f"metrics/{name}.txt", f"http://127.0.0.1:{port}/metrics")


def _scrape(parts: ArchiveParts, client: httpx.Client, path: str, url: str) -> None:
    with parts.trying(path):
        answer = client.get(url)
        if answer.status_code == 404 and url.endswith("/"):
            answer = client.get(url.removesuffix("/"))
        parts.add(path, answer.raise_for_status().content, limit=4 * FILE)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, default=str).encode() + b"\n"
