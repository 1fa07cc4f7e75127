"""Whether nodes fit together."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from raycluster.core.errors import ImageError, VersionMismatchError
from raycluster.core.interfaces import Versions
from raycluster.core.tested_versions import VLLM
from raycluster.plan.version_parity import check_versions, doubtful_engines, other_images
from raycluster.spec import ClusterSpec, Model

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


@pytest.mark.parametrize(
    ("coming", "sentence"),
    [
        (Versions("3.11"), ""),
        (Versions("3.11", "2.60.0", "0.32.0"), ""),
        (Versions(), ""),
        (Versions("3.12"), "Python differs.*head has 3.11, w has 3.12"),
        (Versions("", "2.59.0"), "Ray differs.*head has 2.60.0, w has 2.59.0"),
        (Versions("", "", "0.33.0"), "vLLM differs.*head has 0.32.0, w has 0.33.0"),
    ],
)
def test_of_a_node_that_is_partly_known_what_is_not_known_is_not_compared(
    coming: Versions, sentence: str
) -> None:
    local = replace(GOOD, vllm="0.32.0+cu129")
    with pytest.raises(VersionMismatchError, match=sentence) if sentence else nullcontext():
        check_versions(spec(), {"head": local}, {"w": coming}, gpus=True)
    with pytest.raises(VersionMismatchError) if sentence else nullcontext():
        check_versions(spec(), {}, {"head": GOOD, "w": coming}, gpus=True)


def test_another_patch_of_python_is_fine() -> None:
    check_versions(spec(), {"head": GOOD, "w": Versions("3.11.2", "2.60.0", "0.32.0", "5.19.0")})


def test_a_head_that_holds_no_replicas_needs_no_engine() -> None:
    check_versions(spec(head_gpus=0), {"head": Versions("3.11.7", "2.60.0"), "w": GOOD})


@pytest.mark.parametrize(
    ("both", "sentence"),
    [
        (Versions("3.11.7"), "ray is missing in the environment"),
        (Versions("3.11.7", "2.60.0"), "vllm and transformers are both missing"),
    ],
)
def test_environments_that_lack_something(both: Versions, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        check_versions(spec(), {"head": both, "w": both})


def test_a_doubtful_engine_is_told() -> None:
    found = {"a": GOOD.vllm, "b": "0.29.0+cpu", "c": "", "d": "0.34.0", "e": "0.25.1"}
    found["f"] = "0.33.1"
    told = doubtful_engines({name: Versions(vllm=version) for name, version in found.items()})
    assert told == {
        "b": f"vLLM 0.29.0+cpu has known vulnerabilities; use {VLLM}",
        "d": "vLLM 0.34.0 is newer than the tested versions (0.26 to 0.33)",
        "e": "vLLM 0.25.1 is not supported: 0.26 or newer is needed",
    }


@pytest.mark.parametrize(
    ("model", "gpus", "vllm", "said"),
    [
        (
            {},
            True,
            "",
            "vllm is missing in the environment, but m needs it.*or set `fallback = true`",
        ),
        ({}, True, "0.25.0", "vLLM 0.25.0 is not supported: 0.26 or newer is needed"),
        ({"engine": "vllm"}, False, "", "vllm is missing in the environment, but m needs it"),
        ({"engine": "vllm"}, True, "0.25.9", "vLLM 0.25.9 is not supported"),
        ({}, False, "", ""),
        ({}, False, "0.25.0", ""),
        ({"fallback": True}, True, "", ""),
        ({"engine": "transformers"}, True, "", ""),
        ({"num_gpus": 0}, True, "", ""),
        ({}, True, "0.26.0", ""),
        ({}, True, "0.40.0", ""),
        ({}, True, "0.32.1+cu129", ""),
    ],
)
def test_a_model_that_needs_vllm_is_refused_without_one_that_starts(
    model: dict[str, object], gpus: bool, vllm: str, said: str
) -> None:
    asked = spec().model_copy(update={"models": (Model.model_validate({"name": "m"} | model),)})
    both = Versions("3.11.7", "2.60.0", vllm, "5.19.0")
    refused = pytest.raises(ImageError, match="(?s)" + said) if said else nullcontext()
    with refused as error:
        check_versions(asked, {"head": both, "w": both}, gpus=gpus)
    if error is not None:
        assert error.value.where == "head"
        assert f"vLLM {VLLM}" in error.value.hint


@pytest.mark.parametrize(
    ("layers", "machines", "expected"),
    [
        ({"a": ("1",), "b": ("1",)}, {"a": "x86_64", "b": "x86_64"}, set()),
        ({"a": ("1",), "b": ("2",)}, {"a": "x86_64", "b": "x86_64"}, {"b"}),
        ({"a": ("1",), "b": ("2",)}, {"a": "x86_64", "b": "aarch64"}, set()),
        ({"a": ("1",), "b": ()}, {"a": "x86_64", "b": "x86_64"}, set()),
        ({"a": ("1",), "b": ("2",)}, {"b": "x86_64"}, set()),
        ({"a": (), "b": ("2",), "c": ("1", "2")}, dict.fromkeys("abc", "x86_64"), {"c"}),
    ],
)
def test_hosts_with_another_image_under_one_name_are_told(
    layers: dict[str, tuple[str, ...]], machines: dict[str, str], expected: set[str]
) -> None:
    assert other_images("vllm:1", layers, machines).keys() == expected
