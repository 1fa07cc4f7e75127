"""What the pieces hold and what is left out of them, with the reason; pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PYTHON, GLIBC = "3.12", "x86_64-manylinux_2_31"
TORCH, TRANSFORMERS = "2.11.0", "5.17.0"
"""What the machine has."""
VLLM = "0.26.0"
"""The newest that takes this torch."""

MACHINE = Path(__file__).with_name("machine.txt")
"""What the machine has besides, unless it tells itself."""

MIB = 2**20
LARGEST = 64 * MIB

NO_PACKAGES: Mapping[str, str] = {
    # of vLLM
    "flashinfer-python": "its kernels are compiled on the machine, or are a package of 1.5 GB",
    "tilelang": "kernels of DeepSeek's models",
    "z3-solver": "tilelang's",
    "torch-c-dlpack-ext": "tilelang's, for older torch",
    "tokenspeed-mla": "kernels for Blackwell",
    "tokenspeed-triton": "tokenspeed-mla's",
    "quack-kernels": "kernels for FlashAttention 4",
    "humming-kernels": "kernels for quantized weights",
    "nvidia-cutlass-dsl*": "FlashAttention 4's compiler, for Blackwell",
    "nvidia-cudnn-frontend": "FlashInfer's",
    "cuda-tile": "FlashInfer's",
    "cuda-python": "of cutlass-dsl",
    "nvidia-cuda-nvcc": "compilers come with the machine",
    "nvidia-cuda-crt": "nvcc's",
    "nvidia-cuda-cccl": "nvcc's",
    "nvidia-nvvm": "nvcc's",
    "nvidia-cuda-nvdisasm": "nvcc's",
    "nvtx": "cutlass-dsl's",
    "pynvvideocodec": "video",
    "torchcodec": "sound and video",
    "pyelftools": "of tools for developers",
    "fastsafetensors": "another way to read weights",
    "anthropic": "another maker's client",
    # of this project
    "uv": "the machine has no network",
    "docker": "the runtime is native",
    "paramiko": "SSH, and the machine is this one",
    "pynacl": "paramiko's",
    "bcrypt": "paramiko's",
    "invoke": "paramiko's",
    # of Ray
    "py-spy": "stacks in the dashboard",
    "virtualenv": "environments of tasks",
    "distlib": "virtualenv's",
    "python-discovery": "virtualenv's",
}
"""Packages by pattern, and why they are not carried."""

NO_FILES: Mapping[str, str] = {
    "ray/jars/*": "Java",
    "ray/cpp/*": "C++",
    "ray/rllib/*": "another library of Ray's",
    "ray/dashboard/client/build/*.map": "for developers of the dashboard",
    "vllm/vllm_flash_attn/_vllm_fa2_C*": "FlashAttention 2; Hopper takes 3, others Triton's",
    "vllm/_flashmla*": "kernels of DeepSeek's models",
    "vllm/third_party/flashmla/*": "kernels of DeepSeek's models",
    "vllm/_moe_C*": "kernels of models with experts",
    "vllm/third_party/deep_gemm/*": "kernels for weights of 8 bits",
    "vllm/third_party/fmha_sm100/*": "kernels for Blackwell",
    "vllm/_qutlass_C*": "kernels for weights of 4 bits on Blackwell",
    "vllm/vllm-rs": "the front end that is an experiment",
    "vllm/*.jpg": "pictures",
    "mistral_common/data/*": "the words of Mistral's models",
    "pycountry/locales/*": "names of countries",
    "share/*": "of notebooks",
    "*/tests/*": "tests",
    "*.pyi": "types",
    "*.pyx": "sources of what is compiled",
    "*/__pycache__/*": "made anew",
}
"""Files by pattern, as paths below site-packages, and why they are not carried."""

PROGRAMS = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.attention.backends.flash_attn",
)
"""What stands on all that was left out, and has to be there all the same."""


@dataclass(frozen=True)
class Split:
    """The packages of the pieces, name -> version, and those that the machine brings itself."""

    serving: Mapping[str, str]
    engine: Mapping[str, str]
    machines: Mapping[str, str]


def canonical(name: str) -> str:
    """Return a package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def frozen(text: str) -> dict[str, str]:
    """Return the packages of `pip list --format=freeze`, name -> version, "" where none is said."""
    found = {}
    for line in text.splitlines():
        words = line.partition("#")[0].partition(";")[0]
        if pair := re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:==\s*(\S+)|@.*)?\s*$", words):
            found[canonical(pair[1])] = pair[2] or ""
    return found


def split(
    everything: Mapping[str, str],
    serving: Collection[str],
    have: Collection[str],
    carry: Collection[str] = (),
) -> Split:
    """Share out what was resolved; `serving` names what Ray, the app and its client need.

    What the machine has is left to it but for `carry`; its versions need not be the resolved ones.
    """
    kept = {name: number for name, number in everything.items() if not unwanted(name)}
    brought = {name for name in kept if name in have and name not in carry}
    rest = {name: number for name, number in kept.items() if name not in brought}
    return Split(
        serving={name: number for name, number in rest.items() if name in serving},
        engine={
            name: number for name, number in rest.items() if name not in serving and name != "vllm"
        },
        machines={name: kept[name] for name in brought},
    )


def unwanted(name: str) -> str:
    """Return why a package is carried by nobody, or ""."""
    return _first(NO_PACKAGES, name)


def left_out(path: str) -> str:
    """Return why a file below site-packages is not carried, or ""."""
    return _first(NO_FILES, path)


def _first(reasons: Mapping[str, str], name: str) -> str:
    return next((why for pattern, why in reasons.items() if fnmatchcase(name, pattern)), "")


def compiled(path: str) -> bool:
    """Return whether a file of vLLM's goes with its kernels, and not with its sources.

    What says that vLLM is installed does too: beside the build for CPUs it would be wrong.
    """
    return path.endswith(".so") or path.startswith("vllm-")


def modules(paths: Iterable[str]) -> list[str]:
    """Return the modules that files below site-packages are, of those that are compiled."""
    suffix = re.compile(r"(\.cpython-312-x86_64-linux-gnu|\.abi3)\.so$")
    names = (suffix.sub("", path).replace("/", ".") for path in paths if suffix.search(path))
    return sorted(name for name in names if all(map(str.isidentifier, name.split("."))))
