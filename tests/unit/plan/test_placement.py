"""A model with `hosts` or `gpu` is counted, fetched, placed and refused by those hosts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from raycluster.apply.distribution.models import holding
from raycluster.core.accelerators.values import Accelerators, Device, Trouble
from raycluster.core.errors import ImageError, SpecError
from raycluster.core.interfaces import Secret, Versions
from raycluster.export.kuberay import kuberay
from raycluster.plan.forecast.fits import forecast_models, too_few_cpus
from raycluster.plan.placement import place
from raycluster.plan.planner import plan_app
from raycluster.plan.rollout import plan_rollout
from raycluster.plan.version_parity import check_versions
from raycluster.serve.settings import HOST_LABEL, ModelSettings, applications
from raycluster.services.app import app
from raycluster.services.processes import desired
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, Model
from raycluster.spec.gpus import lacking_gpus
from raycluster.state.cluster import App, ClusterState, HostState, RayNode, Replica
from raycluster.state.free_capacity import Memory
from raycluster.state.inventory import Files, Inventory
from tests.unit.export.designs import WHOLE, design_of
from tests.unit.plan.forecast.given import CARD, LLAMA, SMALL_CARD, host_seen
from tests.unit.plan.sizing.published import LLAMA_31_8B

PLENTY = Memory(1 << 30, 1 << 40)


def spec_of(*models: dict[str, Any], **parts: Any) -> ClusterSpec:
    """Return a spec of the hosts head, a and b."""
    workers = [{"name": name, "host": f"10.0.0.{n}"} for n, name in enumerate("ab", 2)]
    base = {"cluster": {"name": "q"}, "head": {"host": "10.0.0.1"}, "workers": workers}
    return ClusterSpec.model_validate({**base, "models": list(models), **parts})


def model(name: str = "llama", **more: Any) -> dict[str, Any]:
    return {"name": name, "source": "meta/llama", **more}


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (["c"], "`hosts` of llama: no host has the name 'c'; allowed here: a, b, head"),
        (["haed"], "no host has the name 'haed'; did you mean `head`?"),
        (["a", "a"], "`hosts` of llama names 'a' twice"),
        ([], "at least 1 item"),
        ("a", "tuple"),
        (["10.0.0.2"], "no host has the name '10.0.0.2'"),
    ],
)
def test_hosts_are_names_of_the_spec(hosts: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec_of(model(hosts=hosts))
    assert said in str(caught.value)


def test_a_replica_asks_for_the_labels_that_nodes_have() -> None:
    spec = spec_of(model(hosts=["b", "head"]), model("other"))
    wiring = Wiring({h.name: h.host for h in spec.hosts}, Secret("t"))
    labels = {}
    for host in spec.hosts:
        [node] = desired(spec, host, wiring)
        [told] = [word for word in node.argv if word.startswith("--labels=")]
        name, _, labels[host.name] = told.removeprefix("--labels=").partition("=")
        assert name == HOST_LABEL
    assert len(set(labels.values())) == 3
    body = app(spec, gpus={}, fingerprint="f")
    options = {
        a["name"]: a["deployments"][0]["ray_actor_options"]
        for a in body["applications"]
        if a.get("deployments") and "model" in a["args"]
    }
    selector = {HOST_LABEL: f"in({labels['head']}, {labels['b']})"}
    assert options["llama"]["label_selector"] == selector
    assert "label_selector" not in options["other"]
    kept = ModelSettings.from_json(body["applications"][0]["args"]["model"] | {"replicas": 1})
    assert kept.hosts == {"head": labels["head"], "b": labels["b"]}


def test_every_part_of_a_replica_over_hosts_asks_for_them() -> None:
    args = {"tensor_parallel_size": 2}
    spec = spec_of(model(hosts=["a", "b"], engine_args=args))
    [made] = app(spec, gpus={"head": 0, "a": 1, "b": 1}, fingerprint="f")["applications"]
    deployment = made["deployments"][0]
    assert len(deployment["placement_group_bundles"]) == 2
    assert deployment["placement_group_bundle_label_selector"] == [
        {HOST_LABEL: "in(10.0.0.2, 10.0.0.3)"}
    ]
    assert "label_selector" not in deployment["ray_actor_options"]


@pytest.mark.parametrize(
    ("host", "private", "label"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("gpu-1", "10.9.0.1", "10.9.0.1"),
        ("GPU-1.example", None, "gpu-1.example"),
        ("gpu_1", None, None),
        ("fd00::1", None, None),
        ("h" * 60 + ".example", None, None),
    ],
)
def test_a_label_is_a_word_that_ray_takes(host: str, private: str | None, label: str) -> None:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": host, "private_address": private}}
    )
    found = spec.head_host.label
    assert len(found) <= 63
    assert found.replace(".", "").replace("-", "").isalnum()
    if label is None:
        assert found != host
    else:
        assert found == label


def test_another_name_is_no_other_label() -> None:
    first, second = spec_of(), spec_of(workers=[{"name": "renamed", "host": "10.0.0.2"}])
    assert first.hosts[1].label == second.hosts[1].label


GPUS = {"head": 1.0, "a": 4.0, "b": 2.0}


@pytest.mark.parametrize(
    ("models", "lack"),
    [
        ([{"hosts": ("a",), "replicas": 4}], ""),
        ([{"hosts": ("a",), "replicas": 5}], "m0 needs at least 5 GPUs on a, which has 4"),
        (
            [{"hosts": ("a",), "replicas": 3}, {"hosts": ("a",), "replicas": 2}],
            "m0, m1 need at least 5 GPUs on a, which has 4",
        ),
        (
            [{"hosts": ("a", "b"), "replicas": 3}, {"hosts": ("a",), "replicas": 4}],
            "m0, m1 need at least 7 GPUs on a, b, which have 6",
        ),
        ([{"hosts": ("a", "b"), "replicas": 3}, {"hosts": ("a",), "replicas": 3}], ""),
        (
            [{"hosts": ("b",), "num_gpus": 3.0}],
            "a replica of m0 needs 3 GPUs, but its hosts have 2",
        ),
        ([{"replicas": 3}, {"hosts": ("a",), "replicas": 4}], ""),
        ([{"replicas": 4}, {"hosts": ("a",), "replicas": 4}], "the models need at least 8 GPUs"),
    ],
)
def test_gpus_are_counted_on_the_hosts_of_a_model(models: list[dict[str, Any]], lack: str) -> None:
    made = [Model(name=f"m{n}", **more) for n, more in enumerate(models)]
    found = lacking_gpus(made, GPUS)
    assert found.startswith(lack)
    assert bool(found) == bool(lack)


def test_on_hosts_without_gpus_it_runs_on_cpus() -> None:
    spec = spec_of(model(hosts=["head"]), model("big", hosts=["a"]))
    gpus = {"head": 0.0, "a": 1.0, "b": 0.0}
    assert lacking_gpus(spec.models, gpus) == ""
    made = app(spec, gpus=gpus, fingerprint="f")["applications"]
    takes = {
        a["args"]["model"]["name"]: a["args"]["model"]["num_gpus"]
        for a in made
        if "model" in a["args"]
    }
    assert takes == {"llama": 0, "big": 1}


def test_the_forecast_looks_at_its_hosts_alone() -> None:
    spec = spec_of(model(hosts=["a"]))
    seen = Inventory(
        {"head": host_seen(CARD), "a": host_seen(SMALL_CARD), "b": host_seen(CARD)},
        {LLAMA: Files({}, LLAMA_31_8B)},
    )
    (found,) = forecast_models(spec, seen, {"llama": LLAMA})
    assert list(found.fits) == ["a"]
    assert found.problem
    assert found.problem.what.startswith("does not fit on a: ")


def test_too_few_processors_are_told_of_its_hosts() -> None:
    workers = [{"name": name, "host": name, "num_cpus": 4} for name in "ab"]
    spec = spec_of(model(hosts=["a", "b"], num_cpus=6), workers=workers)
    seen = Inventory({h.name: host_seen() for h in spec.hosts}, {})
    models = forecast_models(spec, seen, {"llama": LLAMA})
    (problem,) = too_few_cpus(spec, seen, models)
    assert problem.what == "each replica asks for 6 CPUs, and none of a, b has more than 4"


def test_its_files_are_brought_to_its_hosts_alone() -> None:
    spec = spec_of(model(hosts=["b"]), model("other"))
    hosts = {h.name: HostState(h.name, h.host) for h in spec.hosts}
    nodes = tuple(
        RayNode(h.host, h.name, alive=True, is_head=h.role == "head", cpus=4) for h in spec.hosts
    )
    body = app(spec, gpus={}, fingerprint="f")
    models = [a["args"]["model"] for a in body["applications"] if "model" in a["args"]]
    held = holding(spec, ClusterState(hosts, nodes=nodes), models)
    assert {host: [m["name"] for m in those] for host, those in held.items()} == {
        "head": ["other"],
        "a": ["other"],
        "b": ["llama", "other"],
    }


@pytest.mark.parametrize(
    ("label", "cost"),
    [
        ("10.0.0.3", "starts each new replica before stopping an old one: no interruption"),
        ("10.0.0.2", "no free CPU for one more replica"),
        ("10.0.0.9", "none of its hosts is there for one more replica"),
    ],
)
def test_a_rollout_counts_on_capacity_of_its_hosts_alone(label: str, cost: str) -> None:
    nodes = [
        RayNode("10.0.0.2", "n0", alive=True, cpus=1, label="10.0.0.2"),
        RayNode("10.0.0.3", "n1", alive=True, cpus=4, label="10.0.0.3"),
    ]

    def made(version: int) -> dict[str, Any]:
        args = {"max_num_seqs": version}
        return applications(
            [ModelSettings("a", "/m", engine_args=args, hosts={"x": label})], fingerprint="f"
        )

    [old] = made(1)["applications"]
    node = "n1" if label == "10.0.0.3" else "n0"
    running = [App("a", "RUNNING", config=old, replicas=(Replica("r", "RUNNING", node),))]
    rollout = plan_rollout(made(2), running, nodes, {n.node_id: PLENTY for n in nodes})
    assert rollout.costs["a"].startswith(cost)


def test_only_its_hosts_need_the_engine() -> None:
    good, bare = Versions("3.12.1", "2.60.0", "0.32.0"), Versions("3.12.1", "2.60.0")
    cpu = {"gpus": 0}
    parts: dict[str, Any] = {
        "head": {"host": "10.0.0.1", **cpu},
        "workers": [{"name": "a", "host": "10.0.0.2"}, {"name": "b", "host": "10.0.0.3", **cpu}],
    }
    versions = {"head": bare, "a": good, "b": bare}
    check_versions(spec_of(model(hosts=["a"], engine="vllm"), **parts), versions, gpus=True)
    with pytest.raises(ImageError, match="vllm is missing in the environment, but llama needs it"):
        check_versions(spec_of(model(hosts=["b"], engine="vllm"), **parts), versions, gpus=True)


def test_kubernetes_does_not_know_the_hosts() -> None:
    spec = {**WHOLE, "models": [{**WHOLE["models"][0], "hosts": ["head"]}]}
    with pytest.raises(SpecError, match="Kubernetes chooses the machines of pods"):
        kuberay(design_of(spec))


def cards(*kinds: str) -> Accelerators:
    """Return GPUs of a host: L4, A6000 or H100."""
    known = {"L4": ("NVIDIA L4", 23034), "A6000": ("NVIDIA RTX A6000", 49140)}
    known["H100"] = ("NVIDIA H100 80GB HBM3", 81559)
    devices = [
        Device(str(n), f"GPU-000{n}", known[kind][0], known[kind][1] << 20)
        for n, kind in enumerate(kinds)
    ]
    return Accelerators(tuple(devices))


RACK = {"head": cards(), "a": cards("A6000", "A6000"), "b": cards("H100")}


@pytest.mark.parametrize(
    ("more", "hosts"),
    [
        ({"gpu": "a6000"}, ("a",)),
        ({"gpu": ">= 40 GiB"}, ("a", "b")),
        ({"gpu": ">= 40 GiB", "hosts": ["b", "head"]}, ("b",)),
        ({"gpu": "H100 >= 80 GB"}, ("b",)),
        ({}, None),
        ({"hosts": ["head"]}, ("head",)),
    ],
)
def test_hosts_are_chosen_by_their_gpus(more: dict[str, Any], hosts: object) -> None:
    spec, notes = place(spec_of(model(**more)), RACK)
    assert spec.models[0].hosts == hosts
    assert notes == ()


@pytest.mark.parametrize(
    ("parts", "told", "error"),
    [
        (
            {},
            RACK,
            'gpu = "L4" fits no host: head has no GPU; a has 2 x NVIDIA RTX A6000 (48 GiB); '
            "b has 1 x NVIDIA H100 80GB HBM3 (80 GiB)\n  next: change `gpu` of the model, or add "
            "such a host",
        ),
        (
            {"head": {"host": "10.0.0.1", "gpus": 0}},
            {"head": cards("L4"), "a": Accelerators(problem=Trouble("it hangs", "reboot it"))},
            'gpu = "L4" fits no host: head has gpus = 0; a does not tell its GPUs: it hangs; '
            "b was not seen\n  next: reboot it",
        ),
        (
            {},
            {**RACK, "b": cards("L4", "H100")},
            "b has 1 x NVIDIA L4 (22 GiB), 1 x NVIDIA H100 80GB HBM3 (80 GiB), of which 1 would "
            "do, and Ray may choose any\n  next: list those that fit in `gpus` of the host; change",
        ),
    ],
)
def test_where_no_host_fits_each_is_told_with_what_it_has(
    parts: dict[str, Any], told: dict[str, Accelerators], error: str
) -> None:
    with pytest.raises(SpecError) as caught:
        place(spec_of(model(gpu="L4"), **parts), told)
    assert error in str(caught.value)
    assert caught.value.where == "llama"


def test_all_models_without_a_host_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        place(spec_of(model(gpu="L4"), model("c", gpu="T4"), model("d", gpu="H100")), RACK)
    assert [error.where for error in caught.value.together] == ["llama", "c"]


def test_of_a_host_of_several_kinds_those_are_meant_that_it_uses() -> None:
    mixed = {**RACK, "b": cards("A6000", "L4")}
    _, (note,) = place(spec_of(model(gpu="A6000")), mixed)
    assert (note.where, note.hint) == ("b", "list those that fit in `gpus` of the host")
    assert note.what.startswith("takes no replica of llama: it has 1 x NVIDIA RTX A6000 (48 GiB)")
    workers = [{"name": "b", "host": "10.0.0.3", "gpus": [0]}]
    spec, notes = place(spec_of(model(gpu="A6000"), workers=workers), mixed)
    assert (spec.models[0].hosts, notes) == (("b",), ())


def run_of(spec: ClusterSpec, gpus: dict[str, float]) -> tuple[App, ...]:
    """Return the applications of a spec as they run."""
    body = app(spec, gpus=gpus, fingerprint="f")
    return tuple(App(a["name"], "RUNNING", config=a) for a in body["applications"])


@pytest.mark.parametrize("ill", [{}, {"b": Accelerators(problem=Trouble("it hangs"))}])
def test_a_host_that_is_down_stays_what_it_was(ill: dict[str, Accelerators]) -> None:
    """So that nothing is deployed anew because a host is away, or comes back."""
    asked = spec_of(model(gpu=">= 40 GiB"), model("small", gpu="A6000"))
    gpus = {"head": 0.0, "a": 2.0, "b": 1.0}
    spec, _ = place(asked, RACK)
    apps = run_of(spec, gpus)
    seen = {name: found for name, found in RACK.items() if name != "b"} | ill
    again, (note,) = place(asked, seen, apps)
    assert [m.hosts for m in again.models] == [("a", "b"), ("a",)]
    assert (note.where, note.what.partition(": ")[0]) == ("b", "takes no replica of small")
    away = {name: count for name, count in gpus.items() if name != "b"}
    assert plan_app(app(again, gpus=away, fingerprint="f"), apps) is None
    fresh, notes = place(asked, seen)
    assert [m.hosts for m in fresh.models] == [("a",), ("a",)]
    assert len(notes) == 2


def test_the_forecast_the_plan_and_the_app_are_of_the_hosts_that_fit() -> None:
    spec, _ = place(spec_of(model(gpu="L4"), model("other")), {**RACK, "a": cards("L4")})
    seen = Inventory(
        {"head": host_seen(CARD), "a": host_seen(SMALL_CARD), "b": host_seen(CARD)},
        {LLAMA: Files({}, LLAMA_31_8B)},
    )
    found = forecast_models(spec, seen, {"llama": LLAMA, "other": LLAMA})
    assert [list(each.fits) for each in found] == [["a"], ["head", "a", "b"]]
    body = app(spec, gpus={"head": 0, "a": 1, "b": 1}, fingerprint="f")
    args = [a["args"]["model"] for a in body["applications"] if "model" in a["args"]]
    assert [(m.get("gpu"), m["hosts"]) for m in args] == [("L4", {"a": "10.0.0.2"}), (None, {})]
    change = plan_app(body, run_of(spec_of(model(), model("other")), {"a": 1, "b": 1}))
    assert change
    assert change.reasons == ("llama: changed",)
    assert lacking_gpus(spec.models[:1], {"head": 0, "a": 0, "b": 4}) == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gpu": "48 GB"}, 'did you mean ">= 48 GB"?'),
        ({"gpu": 40}, "string"),
        ({"gpu": ["A6000"]}, "string"),
        ({"gpu": "A6000", "num_gpus": 0}, "num_gpus is 0, but `gpu` asks for GPUs"),
    ],
)
def test_what_asks_for_no_gpu_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec_of(model(**more))
    assert said in str(caught.value)


def test_kubernetes_does_not_know_the_gpus() -> None:
    made = {**WHOLE["models"][0], "gpu": "H100"}
    spec = ClusterSpec.model_validate({**WHOLE, "models": [made]})
    placed, _ = place(spec, {host.name: cards("H100") for host in spec.hosts})
    with pytest.raises(SpecError, match=r"`gpu` of [^ ]+ cannot be kept"):
        kuberay(replace(design_of(WHOLE), spec=placed))
