"""What a replica takes is what vLLM itself counts, in the node's environment."""

from __future__ import annotations

import json
import subprocess

import pytest

from raycluster.spec import Model
from tests.local.cluster import made_by

pytestmark = pytest.mark.local

SIZES: tuple[dict[str, int], ...] = (
    {},
    {"tensor": 2},
    {"tensor": 2, "pipeline": 3},
    {"tensor": 2, "data": 4},
    {"tensor": 2, "prefill_context": 2},
    {"tensor": 4, "decode_context": 2},
    {"tensor": 2, "pipeline": 2, "prefill_context": 2, "data": 2},
)
ASK = """
import json, sys
from vllm.config import ParallelConfig
made = (ParallelConfig(**sizes) for sizes in json.loads(sys.argv[1]))
print(json.dumps([(each.world_size, each.world_size_across_dp) for each in made]))
"""


def test_vllm_counts_as_we_do() -> None:
    sizes = [{f"{name}_parallel_size": n for name, n in each.items()} for each in SIZES]
    models = [Model(name="m", engine_args=each) for each in sizes]
    done = subprocess.run(
        [f"{made_by('node-env')}/bin/python", "-c", ASK, json.dumps(sizes)],
        capture_output=True,
        text=True,
        check=True,
    )
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted == [[model.rank_gpus, model.world_size] for model in models]
