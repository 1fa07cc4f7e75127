"""A RayService for KubeRay's operator, and the code of the app as a ConfigMap; pure.

Processes are not taken over as they are: the operator writes `ray start`, Kubernetes gives pods
their addresses, and the API is reached through a Service. What is left of ours is the app.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

from raycluster.core.errors import SpecError
from raycluster.core.interfaces import ROOT, Process, Volume
from raycluster.export.design import CAPABILITIES, Design, app_body, roles
from raycluster.export.readme import readme
from raycluster.export.tree import ExportedFile, Tree, as_yaml, secret
from raycluster.services.node_files import code_files
from raycluster.services.ray_node import CACHES, CODE_FOLDER
from raycluster.spec import ResolvedHost
from raycluster.spec.models import RAY_VERSION
from raycluster.spec.types import in_bytes

FOLDER = "/raycluster"
CODE = "/raycluster-code/code.zip"
"""Python imports from it as it is."""
SERVE_PORT = 8000
"""What the operator's readiness probes ask; the spec's own port would not be found."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold

_OURS = (
    *("RAY_worker_niceness", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"),
    *("RAY_memory_monitor_refresh_ms", "RAY_worker_oom_score_adjustment"),
)
"""What the pods keep of the nodes' environment, besides caches and the spec's own."""


def kuberay(design: Design) -> Tree:
    """Return the manifests."""
    comment = f"The cluster {design.name} for KubeRay 1.6 or newer. See README.md."
    tree = {
        "rayservice.yaml": ExportedFile(as_yaml(_service(design), comment=comment)),
        "code.yaml": ExportedFile(as_yaml(_code(design))),
    }
    named = sorted(design.spec.secrets)
    if named and design.given:
        tree["secret.yaml"] = secret(as_yaml(_secret(design, design.given.secrets.replicas)))
    told = readme(
        "kuberay",
        design,
        {},
        names=[] if design.given else named,
        written=bool(named and design.given),
        claims=[volume.source for volume in _volumes(design) if not _on_host(volume)],
        paths=[volume.source for volume in _volumes(design) if _on_host(volume)],
        models=", ".join(model.name for model in design.spec.models) or "none",
        monitoring=design.spec.monitoring is not None,
    )
    return {**tree, "README.md": told}


def _service(design: Design) -> dict[str, Any]:
    head, *workers = design.spec.hosts
    if chosen := [model for model in design.spec.models if model.hosts]:
        word = "gpu" if chosen[0].gpu else "hosts"
        raise SpecError(
            f"Kubernetes chooses the machines of pods: `{word}` of {chosen[0].name} cannot be kept",
            where="models",
            hint=f"remove `{word}` for the export, and choose nodes with a nodeSelector in the "
            "files that it writes",
        )
    body = app_body(design, env_secrets=True)
    serve = {**body, "http_options": {"host": "0.0.0.0", "port": SERVE_PORT}}  # noqa: S104 # pods
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": design.name},
        "spec": {
            "serveConfigV2": as_yaml(serve).decode(),
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": _start(design, head),
                    "template": _pod(design, head, "ray-head"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": name,
                        "replicas": len(hosts),
                        "minReplicas": len(hosts),
                        "maxReplicas": len(hosts),
                        "rayStartParams": _start(design, hosts[0]),
                        "template": _pod(design, hosts[0], "ray-worker"),
                    }
                    for name, hosts in _groups(design, workers)
                ],
            },
        },
    }


def _groups(
    design: Design, workers: Iterable[ResolvedHost]
) -> list[tuple[str, list[ResolvedHost]]]:
    """Return hosts that are alike under a name that says how many GPUs each has."""
    alike: dict[str, list[ResolvedHost]] = {}
    for host in workers:
        key = str((_start(design, host), _pod(design, host, "")))
        alike.setdefault(key, []).append(host)
    groups: list[tuple[str, list[ResolvedHost]]] = []
    for hosts in alike.values():
        count = design.gpus[hosts[0].name]
        name = f"gpu-{count}" if count else "cpu"
        used = sum(each.startswith(name) for each, _ in groups)
        groups.append((f"{name}-{used + 1}" if used else name, hosts))
    return groups


def _start(design: Design, host: ResolvedHost) -> dict[str, str]:
    """Return what the operator gives to `ray start`; it counts CPUs and GPUs by the limits."""
    counts = {} if host.num_cpus is None else {"num-cpus": str(host.num_cpus)}
    return counts if design.gpus[host.name] else {**counts, "num-gpus": "0"}


def _pod(design: Design, host: ResolvedHost, name: str) -> dict[str, Any]:
    process = roles(design, host)[0].process
    mounts = [
        {"name": "state", "mountPath": FOLDER},
        {"name": "code", "mountPath": CODE.rpartition("/")[0], "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
    ]
    shm = {"medium": "Memory", "sizeLimit": _quantity(process.shm_size)}
    volumes: list[dict[str, Any]] = [
        {"name": "state", "emptyDir": {}},
        {"name": "code", "configMap": {"name": f"{design.name}-code"}},
        {"name": "shm", "emptyDir": shm},
    ]
    for number, volume in enumerate(process.volumes, start=1):
        mounts.append(
            {
                "name": f"volume-{number}",
                "mountPath": volume.target.replace(ROOT, FOLDER),
                "readOnly": volume.read_only,
            }
        )
        volumes.append({"name": f"volume-{number}", **_source(volume)})
    container = {
        "name": name,
        "image": process.image,
        "imagePullPolicy": _PULL[host.runtime.pull or "missing"],
        "env": _env(design, host, process),
        "workingDir": "/tmp",  # noqa: S108 - the container's own
        "resources": _resources(design, host),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {
                "drop": ["ALL"],
                "add": [*dict.fromkeys((*CAPABILITIES, *process.box.capabilities))],
            },
        },
        "volumeMounts": mounts,
    }
    shared = {"hostIPC": True} if process.box.ipc == "host" else {}
    return {"spec": {**shared, "containers": [container], "volumes": volumes}}


_PULL = {"always": "Always", "missing": "IfNotPresent", "never": "Never"}


def _env(design: Design, host: ResolvedHost, process: Process) -> list[dict[str, Any]]:
    own = host.runtime.env or {}
    kept = {name: process.env[name] for name in (*_OURS, *CACHES, *own)}
    path = process.env["PYTHONPATH"].replace(f"{ROOT}/{CODE_FOLDER}", CODE)
    plain = {**kept, "PYTHONPATH": path, "RAYCLUSTER_ROOT": FOLDER, "RAY_USAGE_STATS_ENABLED": "0"}
    return [
        *({"name": name, "value": _value(value)} for name, value in plain.items()),
        *(
            {
                "name": name,
                "valueFrom": {"secretKeyRef": {"name": f"{design.name}-secrets", "key": name}},
            }
            for name in sorted(design.spec.secrets)
        ),
    ]


def _value(text: str) -> str:
    """Return a value in which Kubernetes replaces no variables."""
    return text.replace(ROOT, FOLDER).replace("$(", "$$(")


def _resources(design: Design, host: ResolvedHost) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if host.num_cpus:
        limits["cpu"] = str(host.num_cpus)
    if count := design.gpus[host.name]:
        limits["nvidia.com/gpu"] = str(count)
    return {"limits": limits, "requests": dict(limits)} if limits else {}


def _volumes(design: Design) -> tuple[Volume, ...]:
    found = [v for host in design.spec.hosts for v in roles(design, host)[0].process.volumes]
    return tuple(dict.fromkeys(found))


def _on_host(volume: Volume) -> bool:
    return volume.source.startswith("/")


def _source(volume: Volume) -> dict[str, Any]:
    if _on_host(volume):
        return {"hostPath": {"path": volume.source}}
    return {"persistentVolumeClaim": {"claimName": volume.source}}


def _quantity(size: str) -> str:
    """Return a size such as `8g` in the words of Kubernetes."""
    units = {"b": "", "k": "Ki", "m": "Mi", "g": "Gi"}
    return size[:-1] + units[size[-1]] if size[-1] in units else str(in_bytes(size))


def _code(design: Design) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{design.name}-code"},
        "binaryData": {CODE.rpartition("/")[2]: base64.b64encode(code_zip()).decode()},
    }


def code_zip() -> bytes:
    """Return the code that runs on the cluster as a zip file, the same at every call."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        for path, content in sorted(code_files().items()):
            if path.endswith(".py"):
                info = zipfile.ZipInfo(path.removeprefix(f"{CODE_FOLDER}/"), _EPOCH)
                info.external_attr = 0o644 << 16
                packed.writestr(info, content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _secret(design: Design, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{design.name}-secrets"},
        "type": "Opaque",
        "stringData": {name: values[name].reveal() for name in sorted(design.spec.secrets)},
    }
