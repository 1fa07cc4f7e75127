"""The table of known images: the default is of it, and every entry says where it is from."""

from __future__ import annotations

import re

import pytest

from raycluster.core.interfaces import Versions
from raycluster.core.tested_versions import RAY
from raycluster.spec import ClusterSpec
from raycluster.spec.known_images import (
    DEFAULT_IMAGE,
    KNOWN,
    lacks_ray,
    python_in,
    versions_in,
)


def test_every_entry_has_a_dated_source_and_a_place_for_the_version() -> None:
    for known in KNOWN:
        assert re.search(r"20\d\d-\d\d$", known.source), known
        assert known.tag.count("{}") == 1
        assert set(known.architectures) <= {"amd64", "arm64"}
    assert len({(known.repository, known.tag) for known in KNOWN}) == len(KNOWN)


def test_the_default_is_for_both_architectures() -> None:
    name = DEFAULT_IMAGE.partition(":")[0]
    assert next(k.architectures for k in KNOWN if k.repository == name) == ("amd64", "arm64")


@pytest.mark.parametrize(
    ("image", "lacks"),
    [
        (DEFAULT_IMAGE, True),
        (f"docker.io/{DEFAULT_IMAGE}-cu129", True),
        ("vllm/vllm-openai@sha256:00", True),
        ("rayproject/ray-llm:2.60.0-py312-cu130", False),
        ("acme/vllm-openai:1", False),
        ("", False),
    ],
)
def test_images_that_lack_ray_are_known(image: str, lacks: bool) -> None:
    assert lacks_ray(image) is lacks


@pytest.mark.parametrize(
    ("image", "python"),
    [
        (DEFAULT_IMAGE, "3.12"),
        ("docker.io/vllm/vllm-openai:v0.31.0-cu129", "3.12"),
        ("acme/serving:1", ""),
    ],
)
def test_the_python_of_an_image_is_known(image: str, python: str) -> None:
    assert python_in(image) == python


@pytest.mark.parametrize(
    ("image", "known"),
    [
        ("vllm/vllm-openai:v0.31.0-cu129", Versions("3.12", RAY, "0.31.0")),
        ("docker.io/vllm/vllm-openai:v0.33.0rc1", Versions("3.12", RAY, "0.33.0rc1")),
        ("vllm/vllm-openai:nightly", Versions("3.12")),
        ("vllm/vllm-openai@sha256:00", Versions("3.12")),
        ("rayproject/ray-llm:2.60.0-py311-cu128", Versions("3.11", "2.60.0")),
        ("docker.io/rayproject/ray:2.59.0-py312@sha256:00", Versions("3.12", "2.59.0")),
        ("rayproject/ray:nightly-py311", Versions()),
        ("acme/ray:2.60.0-py311", Versions()),
        ("acme/serving:1", Versions()),
    ],
)
def test_what_a_tag_says_is_known_before_it_is_brought(image: str, known: Versions) -> None:
    assert versions_in(image) == known


@pytest.mark.parametrize(
    ("image", "own", "python"),
    [
        (None, None, "3.12"),
        (None, "3.13", "3.13"),
        ("acme/serving:1", None, None),
        ("acme/serving:1", "3.12", "3.12"),
    ],
)
def test_native_hosts_get_the_python_of_the_others_image(
    image: str | None, own: str | None, python: str | None
) -> None:
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"image": image} if image else {},
            "head": {"host": "h"},
            "workers": [
                {"host": "w", "runtime": {"kind": "native", "python_version": own}},
            ],
        }
    )
    assert [h.runtime.python_version for h in spec.hosts] == [None, python]


def test_native_hosts_alone_have_the_default() -> None:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "runtime": {"kind": "native"}, "head": {"host": "h"}}
    )
    assert spec.hosts[0].runtime.python_version is None
