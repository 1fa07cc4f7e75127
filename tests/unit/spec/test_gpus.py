from __future__ import annotations

from typing import Any

import pytest

from raycluster.spec import Model
from raycluster.spec.gpus import advice, lacking_gpus, parts, spreads


def model(
    tensor: int = 1, pipeline: int = 1, data: int = 1, prefill: int = 1, **more: Any
) -> Model:
    sizes = {"tensor": tensor, "pipeline": pipeline, "data": data, "prefill_context": prefill}
    args = {f"{name}_parallel_size": size for name, size in sizes.items() if size > 1}
    return Model(name="big", engine_args=args, **more)


@pytest.mark.parametrize(
    ("made", "rank", "whole"),
    [
        (model(), 1, 1),
        (model(2), 2, 2),
        (model(2, 2), 4, 4),
        (model(2, data=4), 2, 8),
        (model(2, 2, 2), 4, 8),
        (model(2, prefill=2), 4, 4),
        (model(2, 2, 2, 2), 8, 16),
        (model(2, data=4, num_gpus=8), 2, 8),
        (model(2, data=4, num_gpus=0), 2, 8),
    ],
)
def test_gpus_of_a_replica(made: Model, rank: int, whole: int) -> None:
    assert (made.rank_gpus, made.world_size) == (rank, whole)


@pytest.mark.parametrize(
    ("made", "gpus", "several"),
    [
        (model(), {"a": 1}, False),
        (model(4), {"a": 2, "b": 4}, False),
        (model(2, 2), {"a": 2, "b": 2}, True),
        (model(2, 2), {"a": 0, "b": 0}, False),
        (model(2, 2), {}, False),
        (model(2, 2, num_gpus=0), {"a": 2}, False),
        (model(2, data=2), {"a": 4}, False),
        (model(2), {"a": 1, "b": 1}, True),
        (model(num_gpus=4), {"a": 2, "b": 2}, False),
    ],
)
def test_which_replicas_need_several_hosts(
    made: Model, gpus: dict[str, float], several: bool
) -> None:
    assert spreads(made, gpus) is several


@pytest.mark.parametrize(
    ("made", "gpus", "lack"),
    [
        (model(8), {"a": 0}, ""),
        (model(), {"a": 1}, ""),
        (model(2, 2), {"a": 2, "b": 2}, ""),
        (model(2, replicas=2), {"a": 4}, ""),
        (model(num_gpus=0.5, replicas=2), {"a": 1}, ""),
        (model(num_gpus=0, replicas=9), {"a": 1}, ""),
        (model(replicas={"min": 0, "max": 9}), {"a": 1}, ""),
        (model(2), {"a": 1, "b": 1}, ""),
        (model(2, replicas={"min": 0, "max": 1}), {"a": 1, "b": 1}, ""),
        (model(4, 2), {"a": 2, "b": 2, "c": 2, "d": 2, "cpu": 0}, ""),
        (model(2, prefill=2), {"a": 2, "b": 2}, ""),
        (model(2, replicas=2), {"a": 1, "b": 1, "c": 1, "d": 1}, ""),
        (model(2, data=2), {"a": 4}, ""),
        (model(2, data=2, replicas=2), {"a": 4, "b": 4}, ""),
        (
            model(4),
            {"head": 1, "gpu-1": 2, "gpu-2": 2},
            "tensor parallel 4 needs a host with 4 GPUs, or hosts with equal shares of them; "
            "head has 1, gpu-1 has 2, gpu-2 has 2: use tensor_parallel_size = 2, "
            "pipeline_parallel_size = 2 or set gpus = 2 for 2 hosts and gpus = 0 for others",
        ),
        (
            model(4),
            {"a": 3, "b": 3},
            "tensor parallel 4 needs a host with 4 GPUs, or hosts with equal shares of them; "
            "a has 3, b has 3: use tensor_parallel_size = 2, "
            "pipeline_parallel_size = 2 or set gpus = 2 for 2 hosts and gpus = 0 for others",
        ),
        (
            model(3, 2),
            {"a": 2, "b": 2, "c": 2},
            "tensor parallel 3 needs a host with 3 GPUs, or hosts with equal shares of them; "
            "a has 2, b has 2, c has 2: use tensor_parallel_size = 1, pipeline_parallel_size = 6",
        ),
        (
            model(2, prefill=3),
            {"a": 4, "b": 2},
            "tensor parallel 2 x prefill context 3 needs a host with 6 GPUs, or hosts with equal "
            "shares of them; a has 4, b has 2: use sizes that fit on one host",
        ),
        (
            model(2, data=4),
            {"a": 4, "b": 4},
            "data parallel 4 of big needs 8 GPUs on one host; a has 4: "
            "use data_parallel_size = 2 and 2 times the `replicas`",
        ),
        (
            model(2, data=2),
            {"a": 1, "b": 1, "c": 1, "d": 1},
            "data parallel 2 of big needs 4 GPUs on one host; a has 1: "
            "use data_parallel_size = 1 and 2 times the `replicas`",
        ),
        (
            model(2, data=2, replicas=2),
            {"a": 6, "b": 2},
            "big needs 2 times 4 GPUs on one host; the hosts have capacity for 1",
        ),
        (
            model(num_gpus=4),
            {"a": 2, "b": 2},
            "big needs 1 times 4 GPUs on one host; the hosts have capacity for 0",
        ),
        (
            model(2, 2),
            {"a": 2, "b": 1, "c": 1},
            "big needs 2 times 2 GPUs on one host; the hosts have capacity for 1",
        ),
        (
            model(2, replicas=3),
            {"a": 3, "b": 3},
            "big needs 3 times 2 GPUs on one host; the hosts have capacity for 2",
        ),
        (
            model(8, replicas={"min": 0, "max": 1}),
            {"a": 2, "b": 2},
            "a replica of big needs 8 GPUs, but the hosts have 4",
        ),
        (
            model(replicas=3),
            {"a": 1, "b": 1},
            "the models need at least 3 GPUs, but the hosts have 2",
        ),
    ],
)
def test_what_the_gpus_lack(made: Model, gpus: dict[str, float], lack: str) -> None:
    assert lacking_gpus([made], gpus) == lack


@pytest.mark.parametrize(
    ("made", "gpus", "told"),
    [
        (model(2), {"a": 2}, None),
        (model(2, 2), {"a": 2, "b": 2}, None),
        (model(4), {"a": 3, "b": 3}, None),
        (model(2), {}, None),
        (
            model(2),
            {"a": 1, "b": 1},
            ("tensor parallel 2 over 2 hosts with 1 GPU each",
             "tensor_parallel_size = 1, pipeline_parallel_size = 2 is usually faster"),
        ),
        (
            model(8, 2),
            dict.fromkeys("abcd", 4),
            ("tensor parallel 8 over 2 hosts with 4 GPUs each",
             "tensor_parallel_size = 4, pipeline_parallel_size = 4 is usually faster"),
        ),
    ],
)  # fmt: skip
def test_what_is_told_of_stages_over_hosts(
    made: Model, gpus: dict[str, float], told: tuple[str, str] | None
) -> None:
    found = advice(made, gpus)
    if told is None or found is None:
        assert found is told
    else:
        assert found[0].startswith(told[0])
        assert found[1].endswith(told[1])
        assert "DGX Spark" in found[1]


@pytest.mark.parametrize(
    ("made", "gpus", "many"),
    [
        (model(), {"a": 1}, 0),
        (model(4), {"a": 4, "b": 4}, 0),
        (model(2, 2), {"a": 2, "b": 2}, 2),
        (model(1, 4), {"a": 2, "b": 2}, 4),
        (model(4), {"a": 2, "b": 2}, 2),
        (model(8, 2), {"a": 4, "b": 4, "c": 4, "d": 4}, 4),
    ],
)
def test_into_how_many_parts_a_replica_is_split(
    made: Model, gpus: dict[str, float], many: int
) -> None:
    assert parts(made, gpus) == many
