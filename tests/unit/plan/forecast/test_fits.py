"""Which models fit on which hosts, and what is said where none, some or all hold them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raycluster.core.accelerators.values import Accelerators, Trouble
from raycluster.core.interfaces import Facts
from raycluster.plan.forecast.fits import (
    ModelForecast,
    forecast_models,
    forecast_notes,
    gpu_memory,
    together,
    too_few_cpus,
    unseen_gpus,
)
from raycluster.spec import ClusterSpec
from raycluster.state.inventory import Files, HostSeen, Inventory
from tests.unit.plan.forecast.given import CARD, GIB, LLAMA, SMALL_CARD, host_seen, spec_of
from tests.unit.plan.sizing.published import LLAMA_31_8B, MIXTRAL_8X7B, QWEN25_05B

READ = {"llama": LLAMA}


def the_one(spec: ClusterSpec, seen: Inventory) -> ModelForecast:
    (found,) = forecast_models(spec, seen, READ)
    return found


def test_every_host_with_gpus_may_hold_a_replica() -> None:
    spec = spec_of({}, {"gpus": 0})
    hosts = {"head": host_seen(CARD), "gpu-1": host_seen(CARD), "gpu-2": host_seen()}
    found = the_one(spec, Inventory(hosts, {LLAMA: Files({}, LLAMA_31_8B)}))
    assert list(found.fits) == ["head", "gpu-1"]
    assert (found.problem, found.warnings, found.doubts) == (None, (), ())
    assert found.fits["head"].budget == int(81920 * (1 << 20) * 0.8)


def test_a_host_that_is_too_small_is_a_warning_while_another_one_fits() -> None:
    hosts = {"head": host_seen(CARD), "gpu-1": host_seen(SMALL_CARD)}
    found = the_one(spec_of({}), Inventory(hosts, {LLAMA: Files({}, LLAMA_31_8B)}))
    assert found.problem is None
    (warning,) = found.warnings
    assert warning.what.startswith("does not fit on gpu-1, where a replica may be placed: one ")
    assert warning.hint.endswith("; or set gpus = 0 for that host")


def test_a_model_that_fits_nowhere_names_the_host_that_comes_closest() -> None:
    hosts = {"head": host_seen(SMALL_CARD), "gpu-1": host_seen(CARD)}
    found = the_one(spec_of({}), Inventory(hosts, {LLAMA: Files({}, MIXTRAL_8X7B)}))
    assert found.problem
    assert found.problem.what == (
        "fits on no host; on gpu-1: its weights take 87.0 GiB on each GPU; "
        "it may take 64.0 GiB of 80.0 GiB"
    )
    assert found.problem.hint.startswith("set tensor_parallel_size = 2 under engine_args")


def test_a_host_that_was_not_seen_may_hold_it() -> None:
    found = the_one(
        spec_of({}), Inventory({"head": host_seen(SMALL_CARD)}, {LLAMA: Files({}, MIXTRAL_8X7B)})
    )
    assert found.problem is None


def test_without_gpus_a_model_takes_the_hosts_memory() -> None:
    seen = Inventory({"head": host_seen(memory=GIB)}, {LLAMA: Files({}, QWEN25_05B)})
    found = the_one(spec_of(), seen)
    assert found.gpus == 0
    assert found.problem
    assert found.problem.what.startswith(
        "does not fit on head: its weights take 942.2 MiB of memory, and 1.0"
    )


def test_the_room_on_a_cpu_is_that_of_the_hosts_or_the_specs_environment() -> None:
    seen = Inventory({"head": host_seen()}, {LLAMA: Files({}, LLAMA_31_8B)})
    wide = {"VLLM_CPU_KVCACHE_SPACE": "16"}
    assert the_one(spec_of(), seen).problem
    assert not the_one(spec_of(env=wide), seen).problem
    assert not the_one(spec_of(runtime={"env": wide}), seen).problem


@pytest.mark.parametrize(
    ("seen", "doubt"),
    [
        (host_seen(CARD), "its config was found neither on the hosts nor on the Hugging Face Hub"),
        (host_seen(CARD, hidden=True), "its folder on the hosts is not readable"),
        (host_seen(CARD, config={"num_hidden_layers": 2}), "its config does not specify layers"),
    ],
)
def test_what_is_not_known_is_said(seen: HostSeen, doubt: str) -> None:
    found = the_one(spec_of(), Inventory({"head": seen}))
    assert found.problem is None
    assert found.fits["head"].at_once is None
    assert found.doubts[0].startswith(doubt)


def test_files_on_a_host_tell_the_size_and_an_index_what_is_still_missing() -> None:
    part = {"config.json": 700, "model-00001-of-00002.safetensors": GIB}
    seen = Inventory({"head": host_seen(CARD, sizes=part, config=LLAMA_31_8B)})
    assert the_one(spec_of(), seen).load.weights == GIB
    assert Files(part, LLAMA_31_8B, indexed=3 * GIB).weights("auto") == 3 * GIB
    assert Files({"config.json": 700}).weights("auto") is None


def test_models_on_cpus_share_the_hosts_memory() -> None:
    models = [{"name": "llama", "source": "meta/llama", "replicas": 3}]
    spec = spec_of({}, models=models, env={"VLLM_CPU_KVCACHE_SPACE": "16"})
    hosts = {name: host_seen(memory=32 * GIB) for name in ("head", "gpu-1")}
    seen = Inventory(hosts, {LLAMA: Files({}, LLAMA_31_8B)})
    problem = together(spec, seen, forecast_models(spec, seen, READ))
    assert problem
    assert (
        problem.what
        == "their replicas take 92.9 GiB of memory at least, and the hosts have 64.0 GiB"
    )
    enough = Inventory({name: host_seen() for name in hosts}, seen.hub)
    assert together(spec, enough, forecast_models(spec, enough, READ)) is None


def test_the_smallest_gpu_that_is_used_counts() -> None:
    two = Facts(Accelerators((CARD, SMALL_CARD)))
    assert gpu_memory(two, 2) == gpu_memory(two, "all") == 23034 << 20
    assert gpu_memory(two, 1) == gpu_memory(two, ("GPU-aaaa",)) == 81920 << 20
    assert gpu_memory(two, (1,)) == 23034 << 20
    assert gpu_memory(Facts(Accelerators((replace(CARD, memory_total_bytes=None),))), 1) is None


def test_where_a_driver_does_not_answer_nothing_is_forecast_for_the_cpu() -> None:
    ill = Facts(Accelerators(problem=Trouble("the driver does not respond"), vendor="nvidia"))
    seen = Inventory(
        {"head": replace(host_seen(memory=GIB), facts=ill)}, {LLAMA: Files({}, LLAMA_31_8B)}
    )
    found = the_one(spec_of(), seen)
    assert (found.gpus, found.problem) == (1, None)
    assert found.fits["head"].budget is None


def test_stages_over_hosts_are_a_note_and_no_problem() -> None:
    wide = {"name": "llama", "engine_args": {"tensor_parallel_size": 2}}
    spec = spec_of({}, models=[wide])
    seen = Inventory(
        {"head": host_seen(CARD), "gpu-1": host_seen(CARD)}, {LLAMA: Files({}, LLAMA_31_8B)}
    )
    found = the_one(spec, seen)
    assert (found.problem, found.warnings) == (None, ())
    (note,) = forecast_notes(spec, seen, ["llama"])
    assert note.where == "llama"
    assert note.what.startswith("tensor parallel 2 over 2 hosts with 1 GPU each")
    assert "pipeline_parallel_size = 2" in note.hint
    assert forecast_notes(spec, seen, []) == ()
    assert forecast_notes(spec, Inventory({"head": host_seen(CARD)}), ["llama"]) == ()


def test_a_memory_that_the_gpu_shares_holds_the_rest_of_the_node_too() -> None:
    shared = replace(CARD, name="NVIDIA GB10", memory_total_bytes=119 * GIB, shares=True)
    assert gpu_memory(Facts(Accelerators((shared,))), "all") == 117 * GIB


def test_a_replica_with_more_processors_than_any_host_has() -> None:
    spec = spec_of({}, models=[{"name": "m", "source": "/models/m", "num_cpus": 3}])
    hosts = {name: HostSeen(Facts(cpus=2, memory_bytes=GIB)) for name in ("head", "gpu-1")}
    models = forecast_models(spec, Inventory(hosts), {})
    (found,) = too_few_cpus(spec, Inventory(hosts), models)
    assert found.what == "each replica asks for 3 CPUs, and no host has more than 2"
    larger = {**hosts, "gpu-1": HostSeen(Facts(cpus=4, memory_bytes=GIB))}
    assert too_few_cpus(spec, Inventory(larger), models) == ()
    assert too_few_cpus(spec, Inventory({"head": hosts["head"]}), models) == ()


def test_models_on_cpus_beside_hardware_that_may_be_a_gpu_are_said() -> None:
    doubt = Trouble("AMD's graphics are in the machine", "install the driver")
    facts = Facts(Accelerators(unseen=doubt), 2, GIB)
    (note,) = unseen_gpus(spec_of(), Inventory({"head": HostSeen(facts)}))
    assert note.what == "models run on its CPUs: AMD's graphics are in the machine"
    assert note.hint == "install the driver; or set gpus = 0 to use this host without its GPUs"
    off = spec_of(head={"host": "h0", "gpus": 0})
    assert unseen_gpus(off, Inventory({"head": HostSeen(facts)})) == ()
