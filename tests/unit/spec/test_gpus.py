from __future__ import annotations

from typing import Any

import pytest

from raycluster.spec import Model
from raycluster.spec.gpus import lacking_gpus, spreads


def model(tensor: int = 1, pipeline: int = 1, **more: Any) -> Model:
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return Model(name="big", engine_args=sizes, **more)


@pytest.mark.parametrize(
    ("made", "gpus", "several"),
    [
        (model(), {"a": 1}, False),
        (model(4), {"a": 2, "b": 4}, False),
        (model(2, 2), {"a": 2, "b": 2}, True),
        (model(2, 2), {"a": 0, "b": 0}, False),
        (model(2, 2), {}, False),
        (model(2, 2, num_gpus=0), {"a": 2}, False),
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
        (
            model(4),
            {"head": 1, "gpu-1": 2, "gpu-2": 2},
            "tensor parallel 4 needs a host with 4 GPUs; gpu-1 has 2: "
            "use tensor_parallel_size = 2, pipeline_parallel_size = 2",
        ),
        (
            model(3, 2),
            {"a": 2, "b": 2, "c": 2},
            "tensor parallel 3 needs a host with 3 GPUs; a has 2: "
            "use tensor_parallel_size = 1, pipeline_parallel_size = 6",
        ),
        (
            model(2, 2),
            {"a": 2, "b": 1, "c": 1},
            "big needs 2 times 2 GPUs on one host; the hosts have room for 1",
        ),
        (
            model(2, replicas=3),
            {"a": 3, "b": 3},
            "big needs 3 times 2 GPUs on one host; the hosts have room for 2",
        ),
        (
            model(2, replicas={"min": 0, "max": 1}),
            {"a": 1, "b": 1},
            "tensor parallel 2 needs a host with 2 GPUs; a has 1: "
            "use tensor_parallel_size = 1, pipeline_parallel_size = 2",
        ),
        (model(replicas=3), {"a": 1, "b": 1}, "the models need 3 GPUs at least, the hosts give 2"),
    ],
)
def test_what_the_gpus_lack(made: Model, gpus: dict[str, float], lack: str) -> None:
    assert lacking_gpus([made], gpus) == lack
