from __future__ import annotations

from dataclasses import replace

import pytest

from raycluster.core.cgroups import Limits
from raycluster.core.interfaces import ROOT, BoxOptions, Process, Secret
from raycluster.services.ray_node import head, within
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec


def env_of(**env: str) -> dict[str, str]:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0"}, "runtime": {"env": env}}
    )
    made = head(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert made
    return dict(made.env)


def test_caches_lie_in_the_cluster_s_folder_unless_the_spec_says_otherwise() -> None:
    env = env_of(HF_HOME="/models/hub")
    assert env["HF_HOME"] == "/models/hub"
    assert env["VLLM_CACHE_ROOT"] == f"{ROOT}/cache/vllm"
    assert env["TRITON_CACHE_DIR"] == f"{ROOT}/cache/triton"
    assert env["XDG_CACHE_HOME"] == f"{ROOT}/cache"


@pytest.mark.parametrize(
    ("gpus", "flags"),
    [
        ("all", []),
        (0, ["--num-gpus=0"]),
        (2, ["--num-gpus=2"]),
        ([0, 2, 5], ["--num-gpus=3"]),
        (["GPU-aaaa"], ["--num-gpus=1"]),
    ],
)
def test_ray_is_told_how_many_gpus_are_named(gpus: object, flags: list[str]) -> None:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0", "gpus": gpus}}
    )
    made = head(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert made
    assert [part for part in made.argv if part.startswith("--num-gpus")] == flags
    assert made.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert made.gpus == spec.head.gpus


def test_a_choice_of_gpus_is_part_of_the_fingerprint() -> None:
    made = [Process("head", (), gpus=gpus) for gpus in ("all", 2, (0, 1), ("GPU-aaaa",))]
    assert len({process.fingerprint for process in made}) == len(made)


def node_of(host: dict[str, object], **runtime: object) -> Process:
    tables = {"cluster": {"name": "q"}, "head": {"host": "h0", "runtime": host}}
    spec = ClusterSpec.model_validate({**tables, "runtime": runtime})
    made = head(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert made
    return made


def test_devices_and_limits_are_the_cluster_s_or_the_host_s_own() -> None:
    every = {"devices": ["/dev/infiniband"], "ulimits": {"memlock": -1}, "cap_add": ["IPC_LOCK"]}
    box = node_of({"ulimits": {"nofile": 9}, "ipc": "host"}, **every).box
    assert box == BoxOptions(("/dev/infiniband",), {"nofile": 9}, ("IPC_LOCK",), "host")
    assert node_of({}).box == BoxOptions()


def test_what_is_not_set_leaves_the_fingerprint_as_it_was() -> None:
    plain = Process("head", ("ray",))
    assert plain.fingerprint == "33111f33f736"  # of version 0.1.0 before
    kinds = (
        BoxOptions(devices=("/dev/fuse",)),
        BoxOptions(ulimits={"nofile": 9}),
        BoxOptions(capabilities=("SYS_NICE",)),
        BoxOptions(ipc="host"),
    )
    made = {plain.fingerprint, *(replace(plain, box=box).fingerprint for box in kinds)}
    assert len(made) == 1 + len(kinds)


MACHINE = 24 << 30


@pytest.mark.parametrize(
    ("limits", "host", "more"),
    [
        (Limits(8, MACHINE, 8, MACHINE), {}, ()),
        (Limits(2.5, MACHINE, 8, MACHINE), {}, ("--num-cpus=2",)),
        (Limits(0.5, MACHINE, 8, MACHINE), {}, ("--num-cpus=1",)),
        (Limits(2, MACHINE, 8, MACHINE), {"num_cpus": 4}, ()),
        (
            Limits(8, 2 << 30, 8, MACHINE),
            {},
            ("--object-store-memory=644245094", f"--memory={(2 << 30) - 644245094}"),
        ),
        (Limits(8, 16 << 30, 8, MACHINE), {}, (f"--memory={15 << 30}",)),
        (Limits(1, 1 << 30, 1, 1 << 30), {}, ("--object-store-memory=322122547",)),
        (None, {}, ()),
    ],
)
def test_ray_counts_no_more_than_the_host_leaves(
    limits: Limits | None, host: dict[str, object], more: tuple[str, ...]
) -> None:
    """And a node is not started anew because of it: a limit is the host's, not the spec's."""
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h0", **host}})
    made = head(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert made
    here = within(made, spec.hosts[0], limits)
    assert here.more == more
    assert here.fingerprint == made.fingerprint
