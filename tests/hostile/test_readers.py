"""Each reader of what hosts say, by itself: what the recorded hosts had none of, GPUs above all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from raycluster.apply.engine_probe.judge import asked, judge
from raycluster.apply.engine_probe.told import MARK, read
from raycluster.bench.load import Conditions
from raycluster.bench.remote import RemoteListener, RemoteRun
from raycluster.bench.schedule import Load
from raycluster.core.accelerators import host as accelerators
from raycluster.core.errors import RayclusterError
from raycluster.core.interfaces import Completed
from raycluster.core.untrusted import read_json
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.engine_metrics import read_gpus, read_service
from raycluster.observe.facts import read_facts
from raycluster.observe.replica_endpoints import listening
from raycluster.openai_client.prompts import Prompt
from raycluster.openai_client.target import Target
from raycluster.spec import Model
from raycluster.status.gpus import from_ray, from_smi
from raycluster.status.prometheus import read as read_prometheus
from tests.hostile.spoil import spoiled

RUNS = 1000
GPU = "0, GPU-8a8a8a8a-1111-2222-3333-444444444444, NVIDIA H100 80GB HBM3, 81559, 4, 550.54.15"
SMI = f"""pci nvidia
driver /proc/driver/nvidia/version
smi-fields index,uuid,name,memory.total,memory.used,driver_version,compute_cap,mig.mode.current
smi-code 0
smi {GPU}, 9.0, Enabled
list-code 0
list GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8a8a8a8a-1111-2222-3333-444444444444)
list   MIG 1g.10gb Device 0: (UUID: MIG-b7c8d9e0-1111-2222-3333-555555555555)
"""
KFD = """kfd 1 128 206141652992 16135142313271099392 90402
rocm {"card0": {"Card Series": "AMD Instinct MI300X", "Unique ID": "0xdfebd1b1c2d3e4f0", \
"VRAM Total Memory (B)": "206141652992"}, "system": {"Driver version": "6.7.0"}}
"""
LIVE = "pci nvidia\nsmi-code 0\nsmi 0, NVIDIA H100, 97, 70000, 81559, 61, 512.31, 0\n"
FACTS = """held 9223372036854771712
held 68719476736 1073741824 4096
quota 1600000 100000
MemTotal: 263921420
MemAvailable: 203921420
allowed 0-63
online 0-63
machine x86_64
glibc glibc 2.36
disk Filesystem 1024-blocks Used Available Capacity Mounted on
disk /dev/vda1 41152736 9 27981456 23% /
listen 0016
epoch 1796000000.123456789
program nginx
"""
PROBE = MARK + json.dumps(
    {
        **{"schema": 1, "torch": {"version": "2.13.0", "cuda": "13.0", "archs": ["sm_90"]}},
        **{"vllm": {"found": True, "error": "", "more": ""}, "count": 1, "memlock": -1},
        "gpus": [{"index": 0, "name": "H100", "capability": "9.0", "free": 9, "total": 10}],
        "holders": [{"gpu": "GPU-1", "pid": 7, "name": "python", "used": 5}],
        **{"shm": {"size": 67108864}, "failed": {"gpu 0": "did not finish within 60 s"}},
    }
)
METRICS = """raycluster_engine_info{engine="vllm",reason=""} 1
process_start_time_seconds 1.796e+09
vllm:num_requests_running{model_name="m"} 3
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:generation_tokens_total{model_name="m"} 1234
raycluster_requests_total{endpoint="/v1/completions",status="200"} 12
raycluster_time_to_first_token_seconds_bucket{le="0.5"} 10
raycluster_time_to_first_token_seconds_bucket{le="+Inf"} 12
"""
NODE = """ray_node_gpus_utilization{GpuIndex="0",GpuDeviceName="H100"} 97
ray_node_gram_used{GpuIndex="0",GpuDeviceName="H100"} 70000
ray_node_gram_available{GpuIndex="0",GpuDeviceName="H100"} 11559
"""
SERIES = json.dumps(
    [
        {"metric": {"model": "m", "figure": figure}, "value": [1796000000.1, "0.25"]}
        for figure in ("requests", "errors", "tokens", "own", "p50", "p95")
    ]
)
RAY_GPUS = json.dumps(
    [{"index": 0, "name": "H100", "utilizationGpu": 9, "memoryUsed": 1, "powerMw": 350500}]
)
RECORD = {
    **{"id": "1", "line": 1, "repeat": 0, "intended": 0.0, "sent": 0.0, "end": 1.5},
    **{"headers": 0.1, "first_event": 0.1, "first_token": 0.1, "last_token": 1.4},
    **{"last_event": 1.4, "gaps": [0.1, 0.2], "input_tokens": 5, "cached_tokens": 0},
    **{"output_tokens": 3, "finish_reason": "stop", "status": 200, "failure": None, "detail": ""},
}
LAG = dict.fromkeys(("mean", "std", "min", "p50", "p90", "p95", "p99", "max"), 1.0)
BENCH = "\n".join(
    json.dumps(message)
    for message in (
        {"note": "warm"},
        {"level": 0, "record": RECORD},
        {
            "levels": [
                {
                    "load": {"kind": "closed", "concurrency": 2},
                    "client": {
                        **{"loop_lag_ms": {"count": 3, **LAG}, "cpu_share": 0.2},
                        **{"processes": 1, "capacity": None},
                    },
                    **{"repeated": 0, "salted": False},
                }
            ],
            "found": None,
        },
    )
)


class Saying(LocalTransport):
    """A host that says this to everything."""

    def __init__(self, said: bytes) -> None:
        super().__init__("gpu-1")
        self._said = said

    def run(self, *_: object, **__: object) -> Completed:
        return Completed(0, self._said)


def _smi(said: bytes) -> object:
    return accelerators.read(said.decode("utf-8", "replace"))


def _probe(said: bytes) -> object:
    seen = read(said, "gpu-1")
    question = asked([Model(name="m")], 1, slices=False)
    assert question
    return judge(seen, question)


def _bench(said: bytes) -> object:
    job = RemoteRun(
        [Prompt("1", 1, "/v1/completions", {}, "m")], Target("http://a", "m"), Load(), Conditions()
    )
    listener = RemoteListener(job, lambda _: None, lambda *_: None, lambda _: None)
    for line in said.split(b"\n"):
        listener.take(line)
    return listener.summary(0.0, interrupted=False)


READERS: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "nvidia": (SMI, _smi),
    "amd": (KFD, _smi),
    "live": (LIVE, lambda said: from_smi(said.decode("utf-8", "replace"))),
    "facts": (FACTS, lambda said: read_facts(Saying(said))),
    "probe": (PROBE, _probe),
    "metrics": (METRICS, lambda said: read_service(said.decode("utf-8", "replace"), "m", now=1e9)),
    "node": (NODE, lambda said: read_gpus(said.decode("utf-8", "replace"), "gpu-1")),
    "prometheus": (SERIES, lambda said: read_prometheus(read_json(said, "it"))),
    "ray": (RAY_GPUS, lambda said: from_ray(read_json(said, "it"))),
    "ports": ("0100007F:1F90\n" * 3, lambda said: [*listening(said.decode("utf-8", "replace"))]),
    "bench": (BENCH, _bench),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_raises_no_other_error(name: str) -> None:
    real, reader = READERS[name]
    whole = reader(real.encode())
    assert whole, "what is spoiled has to be right before"
    for seed in range(RUNS):
        said = spoiled(random.Random(seed), real.encode())
        try:
            repr(reader(said)).encode()
        except RayclusterError:
            continue
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}: {said[:300]!r}")
            raise
