"""Measures the host memory of a replica of a model of Qwen2.5-0.5B's shape, per process.

    python -m benchmarks.memory

A cluster of this machine alone serves the shape with random weights; the memory is the proportional
set size of the replica's process, its keeper's, vLLM's server's and its engine's, after some
requests. On a CPU the weights and the keys and values lie in it too, which on a GPU would lie in
the GPU's memory: they are counted apart. So are the copies that vLLM's kernels for CPUs with
bfloat16 make of the embedding (one for its own layer, one for the head, which shares its weights):
what such a copy takes is measured on this machine. Ends with 1 when the rest is above its limit.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Limit, keep
from benchmarks.local import API, ROOT, Local, made_by

MOST_MB = 2000
KV_MB = 1024
"""What our default, VLLM_CPU_KVCACHE_SPACE = 1 (GiB), takes; all of it is touched at the start."""
ARGUMENTS = '{ max_model_len = 2048, dtype = "bfloat16", enforce_eager = true }'
KINDS = {
    **{"ray::ServeReplica": "replica", "VLLM::EngineCore": "engine"},
    **{"/keeper.py ": "keeper", "/vllm serve ": "server"},
}
"""What is in the command lines of processes, and what these are; the first that fits."""

EMBEDDING = "151936, 896"
EMBEDDINGS = 2
"""The layers that hold the embedding: vLLM packs it for each, though they share it."""
PACK = f"""
from pathlib import Path
import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")) / 1024

layer = torch.nn.Module()
layer.weight = torch.nn.Parameter(torch.ones({EMBEDDING}, dtype=torch.bfloat16), False)
before = anonymous()
dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
print(anonymous() - before)
"""


def processes(name: str) -> Iterator[dict[str, object]]:
    """Yield the cluster's processes with their memory in MB, anonymous and of files."""
    mark = f"RAYCLUSTER_OWNER={name}@".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (folder / "environ").read_bytes():
                continue
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue  # it ended
        sizes = {
            key: int(size.split()[0]) / 1024 for key, _, size in (x.partition(":") for x in lines)
        }
        kind = next((kind for word, kind in KINDS.items() if word in title), "other")
        yield {
            "kind": kind,
            "title": " ".join(word.rpartition("/")[2] for word in title.split())[:60],
            "pss": sizes["Pss"],
            "anonymous": sizes["Pss_Anon"],
            "files": sizes["Pss_File"],
            "shared": sizes["Pss_Shmem"],
            "largest": largest(folder),
        }


def largest(folder: Path) -> list[float]:
    """Return the resident MB of the process's five largest mappings."""
    sizes = [
        int(line.split()[1]) / 1024
        for line in (folder / "smaps").read_text().splitlines()
        if line.startswith("Rss:")
    ]
    return sorted(sizes)[-5:]


def ask(times: int) -> None:
    """Send some completions, so that what is used lazily is there."""
    for turn in range(times):
        body = {"model": "model", "prompt": f"{turn} " * 20, "max_tokens": 8, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{API}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=120).read()


def main() -> None:
    """Measure, print, keep."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        python = f"{made_by('node-env')}/bin/python"
        subprocess.run([python, ROOT / "scripts/save_qwen.py", made_by("model"), model], check=True)
        weights = sum(p.stat().st_size for p in model.glob("*.safetensors")) / 2**20
        packed = subprocess.run([python, "-c", PACK], check=True, capture_output=True, text=True)
        copies = EMBEDDINGS * float(packed.stdout.split()[-1])
        cluster = Local("memory", Path(folder))
        try:
            cluster.up(str(model), ARGUMENTS)
            ask(8)
            rows = sorted(processes("memory"), key=lambda row: float(str(row["pss"])))
        finally:
            cluster.down()
    total = 0.0
    for row in rows:
        print({k: round(v) if isinstance(v, float) else v for k, v in row.items()})
        if row["kind"] != "other":
            total += float(str(row["pss"]))
    rest = total - weights - copies - KV_MB
    parts = (
        f"weights {weights:.0f}, packed copies of the embedding {copies:.0f}, "
        f"keys and values {KV_MB}, the rest {rest:.0f}"
    )
    print(f"replica and engine, MB: {total:.0f}: {parts}")
    counted = {"weights": weights, "copies": copies, "keys and values": KV_MB}
    keep("memory", [*rows, counted], [Limit("replica and engine, the rest, MB", rest, MOST_MB)])


if __name__ == "__main__":
    main()
