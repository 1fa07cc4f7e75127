"""Whether nodes fit together."""

from __future__ import annotations

import pytest

from raycluster.contracts import Versions
from raycluster.errors import ImageError, VersionMismatchError
from raycluster.spec import ClusterSpec
from raycluster.versions import check_versions, old_engines

GOOD = Versions("3.11.7", "2.60.0", "0.32.0", "5.19.0")


def spec(head_gpus: object = "all") -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h", "gpus": head_gpus},
            "workers": [{"host": "w", "name": "w"}],
            "models": [{"name": "m"}],
        }
    )


@pytest.mark.parametrize(
    ("worker", "sentence"),
    [
        (Versions("3.11.7", "2.59.0", "0.32.0"), "Ray differs.*head has 2.60.0, w has 2.59.0"),
        (Versions("3.12.1", "2.60.0", "0.32.0"), "Python differs.*head has 3.11, w has 3.12"),
        (Versions("3.11.7", "2.60.0", "0.33.0"), "vLLM differs.*head has 0.32.0, w has 0.33.0"),
        (Versions("3.11.7", "2.60.0", ""), "vLLM differs.*head has 0.32.0, w has none"),
    ],
)
def test_nodes_that_differ(worker: Versions, sentence: str) -> None:
    with pytest.raises(VersionMismatchError, match=sentence):
        check_versions(spec(), {"head": GOOD, "w": worker})


def test_another_patch_of_python_is_fine() -> None:
    check_versions(spec(), {"head": GOOD, "w": Versions("3.11.2", "2.60.0", "0.32.0", "5.19.0")})


def test_a_head_that_holds_no_replicas_needs_no_engine() -> None:
    check_versions(spec(head_gpus=0), {"head": Versions("3.11.7", "2.60.0"), "w": GOOD})


@pytest.mark.parametrize(
    ("both", "sentence"),
    [
        (Versions("3.11.7"), "no ray in the environment"),
        (Versions("3.11.7", "2.60.0"), "neither vllm nor transformers"),
    ],
)
def test_environments_that_lack_something(both: Versions, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        check_versions(spec(), {"head": both, "w": both})


def test_an_old_engine_is_told() -> None:
    versions = {"a": GOOD, "b": Versions(vllm="0.29.0+cpu"), "c": Versions(), "d": Versions()}
    assert old_engines(versions) == {
        "b": "vLLM 0.29.0+cpu has known vulnerabilities; use 0.32 or newer"
    }
