"""Which nodes hold which models, and whether all hold the same."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.apply.distribution.models import compare, holders
from raycluster.core.errors import AppError
from raycluster.serve.model_refs import ModelRef
from raycluster.serve.settings import ModelSettings
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState, HostState, RayNode

SPEC = ClusterSpec.model_validate(
    {
        "cluster": {"name": "q"},
        "head": {"host": "h0"},
        "workers": [{"host": "h1", "name": "gpu"}, {"host": "h2", "name": "gone"}],
    }
)
STATE = ClusterState(
    {"head": HostState("head", "10.0.0.1"), "gpu": HostState("gpu", "10.0.0.2")}
    | {"gone": HostState("gone", "10.0.0.3")},
    nodes=(
        RayNode("10.0.0.1", "a", alive=True, is_head=True, cpus=4),
        RayNode("10.0.0.2", "b", alive=True, cpus=4, gpus=1),
        RayNode("10.0.0.3", "c", alive=False, cpus=4, gpus=1),
    ),
)


def test_a_model_for_gpus_goes_to_live_nodes_with_gpus() -> None:
    large = ModelSettings("large", "org/large", num_gpus=1).to_json()
    small = ModelSettings("small", "org/small").to_json()
    assert holders(SPEC, STATE, [large, small]) == {
        "head": (ModelRef("org/small"),),
        "gpu": (ModelRef("org/large"), ModelRef("org/small")),
    }


def test_the_same_everywhere_is_right() -> None:
    both: dict[str, dict[str, Any]] = {
        "org/m": {"version": "abc"},
        "/m": {"files": {"config.json": "1 x"}},
    }
    compare({"head": both, "gpu": both, "other": {"org/m": {"version": "abc"}}})


def test_other_commits_are_refused() -> None:
    seen = {"head": {"org/m": {"version": "a" * 40}}, "gpu": {"org/m": {"version": "b" * 40}}}
    with pytest.raises(AppError, match="different commits: head aaaaaaaa, gpu bbbbbbbb"):
        compare(seen)


def test_other_files_are_refused_with_the_host_s_name() -> None:
    seen = {"head": {"/m": {"files": {"a": "1"}}}, "gpu": {"/m": {"files": {"a": "2"}}}}
    with pytest.raises(AppError, match="a has another size on gpu than on head"):
        compare(seen)
