"""What fits on hosts, and with which arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycluster.core.accelerators.values import Accelerators, Device
from raycluster.core.interfaces import Facts
from raycluster.recipes.catalog import catalog
from raycluster.recipes.fits import Placing, best, ranked
from raycluster.spec import ClusterSpec

GIB = 1 << 30
RECIPES = catalog().recipes


def facts(count: int, name: str = "NVIDIA L4", mib: int | None = 23034, cap: str = "8.9") -> Facts:
    """Return a host of 64 GiB with so many GPUs."""
    size = None if mib is None else mib << 20
    devices = [
        Device(str(n), f"GPU-000{n}", name, size, compute_capability=cap) for n in range(count)
    ]
    return Facts(Accelerators(tuple(devices), vendor="nvidia" if count else ""), 8, 64 * GIB)


L4, L4S, NONE = facts(1), facts(2), facts(0)
H100 = facts(8, "NVIDIA H100 80GB HBM3", 81559, "9.0")
T4 = facts(1, "Tesla T4", 15360, "7.5")

FP8_ON_TWO = {"quantization": "fp8", "tensor_parallel_size": 2}


def spec_of(*workers: str, **head: Any) -> ClusterSpec:
    tables = [{"name": name, "host": f"10.0.0.{n}"} for n, name in enumerate(workers, 2)]
    base = {"cluster": {"name": "q"}, "head": {"host": "10.0.0.1", **head}, "workers": tables}
    return ClusterSpec.model_validate(base)


@pytest.mark.parametrize(
    ("name", "hosts", "arguments"),
    [
        ("qwen2.5-0.5b", {"head": L4}, {}),
        ("qwen3-8b", {"head": L4}, {"max_model_len": 16384}),
        ("qwen3-8b", {"head": L4S}, {"tensor_parallel_size": 2}),
        ("mistral-small-24b", {"head": L4S}, FP8_ON_TWO),
        ("mistral-small-24b", {"head": H100}, {}),
        ("llama-3.1-70b-fp8", {"head": H100}, {"tensor_parallel_size": 2}),
        ("qwen3-8b", {"head": NONE}, {"max_model_len": 4096}),
    ],
)
def test_what_fits_and_how(name: str, hosts: dict[str, Facts], arguments: dict[str, Any]) -> None:
    place = best(RECIPES[name], spec_of(), hosts)
    assert place
    assert place.problem == ""
    told = place.arguments(RECIPES[name])
    assert {k: v for k, v in told.items() if k not in RECIPES[name].engine_args} == arguments


@pytest.mark.parametrize(
    ("name", "seen", "problem"),
    [
        ("glm-4.5-air", L4, "its weights take"),
        ("qwen2.5-7b-awq", NONE, "awq is for GPUs"),
        ("qwen3-8b", T4, "its GPUs know no bfloat16"),
        ("qwen3-8b", facts(1, "NVIDIA Thing", None), "its memory is unknown"),
    ],
)
def test_why_something_does_not_fit(name: str, seen: Facts, problem: str) -> None:
    place = best(RECIPES[name], spec_of(), {"head": seen})
    assert place
    assert place.problem.startswith(problem)


def test_only_what_the_cluster_uses_of_a_host_counts() -> None:
    place = best(RECIPES["qwen3-30b-a3b"], spec_of(gpus=[0]), {"head": H100})
    assert place
    assert (place.gpus, place.hardware) == (1, "1 x NVIDIA H100 80GB HBM3 (80 GiB)")
    assert best(RECIPES["qwen3-8b"], spec_of(), {}) is None
    none = best(RECIPES["qwen3-8b"], spec_of(gpus=0, num_cpus=0), {"head": H100})
    assert none is None


def test_hosts_that_take_no_replica_run_so_are_left_out() -> None:
    seen = {"head": NONE, "a": L4, "b": H100}
    place = best(RECIPES["qwen3-30b-a3b"], spec_of("a", "b"), seen)
    assert place
    assert (place.host, place.hosts) == ("b", ("b",))
    alike = best(RECIPES["qwen3-8b"], spec_of("a"), {"head": H100, "a": H100})
    assert alike
    assert alike.hosts == ()


def test_proven_comes_first_then_what_fits_the_largest_first() -> None:
    recipes = [
        RECIPES[n] for n in ("phi-4", "glm-4.5-air", "qwen2.5-0.5b", "qwen3-8b", "lfm2-1.2b")
    ]
    fits = Placing("head", "")
    no = replace(fits, problem="no")
    placings = {"phi-4": fits, "glm-4.5-air": no, "qwen2.5-0.5b": fits, "qwen3-8b": no}
    found = ranked(recipes, {**placings, "lfm2-1.2b": None}, ["Qwen/Qwen2.5-0.5B-Instruct"])
    names = [each.name for each in found]
    assert names == ["qwen2.5-0.5b", "phi-4", "lfm2-1.2b", "qwen3-8b", "glm-4.5-air"]
