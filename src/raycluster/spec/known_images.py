"""Images that are known to hold an engine: which tags, for what, and where the knowledge is from.

Nobody asked a registry: `check` asks it for the tag of the spec.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raycluster.core.interfaces import Versions
from raycluster.core.tested_versions import RAY, VLLM


@dataclass(frozen=True)
class Known:
    """Tags of a repository: `{}` in `tag` stands for the version of what `versions_of` names."""

    repository: str
    tag: str
    versions_of: str
    platform: str
    architectures: tuple[str, ...]
    python: str
    ray: bool
    source: str


_BOTH = ("amd64", "arm64")
_PYTHON = "3.12"
_VLLM = "vLLM's release script publish-release-images.sh and Dockerfile, read 2026-11"
_RAY = "Ray's pull request 62458 and its tags of 2.57 to 2.59; for 2.60 none was seen, 2026-11"

_OPENAI, _LLM = "vllm/vllm-openai", "rayproject/ray-llm"

KNOWN = (
    Known(_OPENAI, "v{}", "vLLM", "CUDA 13.0", _BOTH, _PYTHON, False, _VLLM),
    Known(_OPENAI, "v{}-cu129", "vLLM", "CUDA 12.9", _BOTH, _PYTHON, False, _VLLM),
    Known(_OPENAI, "v{}-ubuntu2404", "vLLM", "CUDA 13.0", _BOTH, _PYTHON, False, _VLLM),
    Known(_OPENAI, "v{}-cu129-ubuntu2404", "vLLM", "CUDA 12.9", _BOTH, _PYTHON, False, _VLLM),
    Known(f"{_OPENAI}-cpu", "v{}", "vLLM", "no GPU", _BOTH, _PYTHON, False, _VLLM),
    Known(f"{_OPENAI}-rocm", "v{}", "vLLM", "ROCm", ("amd64",), _PYTHON, False, _VLLM),
    Known(_LLM, "{}-py312-cu130", "Ray", "CUDA 13.0", ("amd64",), _PYTHON, True, _RAY),
)

_RAY_TAG = re.compile(r"rayproject/[a-z-]+:([0-9]+\.[0-9]+\.[0-9]+)-py([0-9])([0-9]+)(?:-.*)?")

RAY_BYTES = 500_000_000
"""About what Ray takes on a disk, with what vLLM's own image lacks of what it needs."""


def lacks_ray(image: str) -> bool:
    """Return whether the image is known to hold an engine and no Ray."""
    return any(not known.ray for known in _of(image))


def python_in(image: str) -> str:
    """Return the version of Python in an image that is known, or ""."""
    return next((known.python for known in _of(image)), "")


def versions_in(image: str) -> Versions:
    """Return what the tag of an image says, and the Ray that is added to it; or empty texts."""
    tag = image.partition("@")[0].rpartition(":")[2]
    if told := _RAY_TAG.fullmatch(image.removeprefix("docker.io/").partition("@")[0]):
        return Versions(f"{told[2]}.{told[3]}", told[1])
    for known in _of(image):
        if told := _pattern(known).fullmatch(tag):
            ray, vllm = (told[1], "") if known.versions_of == "Ray" else (RAY, told[1])
            return Versions(known.python, ray, vllm)
    return Versions(python_in(image))


def cuda_in(image: str) -> str:
    """Return the version of CUDA that an image with a known tag is built for, or ""."""
    tag = image.partition("@")[0].rpartition(":")[2]
    for known in _of(image):
        if known.platform.startswith("CUDA ") and _pattern(known).fullmatch(tag):
            return known.platform.removeprefix("CUDA ")
    return ""


def _pattern(known: Known) -> re.Pattern[str]:
    number = r"([0-9]+(?:\.[0-9]+)*(?:rc[0-9]+)?)"
    return re.compile(re.escape(known.tag).replace(re.escape("{}"), number))


def _of(image: str) -> list[Known]:
    name = image.removeprefix("docker.io/").partition("@")[0].partition(":")[0]
    return [known for known in KNOWN if known.repository == name]


DEFAULT_IMAGE = f"{KNOWN[0].repository}:{KNOWN[0].tag.format(VLLM)}"
