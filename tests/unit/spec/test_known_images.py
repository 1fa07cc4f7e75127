"""The table of known images: the default is of it, and every entry says where it is from."""

from __future__ import annotations

import re

import pytest

from raycluster.spec.known_images import DEFAULT_IMAGE, KNOWN, lacks_ray


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
