"""What we use of vLLM without its promise is there: in the CPU build, and in the wheels for GPUs.

The wheels are those of every release that is said to be startable; their sources are read alone.
"""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

from raycluster import tested
from raycluster.serve.engines.vllm import PRIVATE
from raycluster.serve.engines.vllm_log import LOGGED
from raycluster.versions import startable

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]
RELEASES = ("0.29.0", "0.30.0", "0.31.0", "0.32.0")
BUILDS = ("cpu", *RELEASES)


@cache
def packages(build: str) -> Path:
    """Return the folder that holds vLLM: the node's environment, or a wheel for CUDA."""
    script = ("node-env",) if build == "cpu" else ("vllm-sources", build)
    path = [ROOT / "scripts" / script[0], *script[1:]]
    done = subprocess.run(path, check=True, stdout=subprocess.PIPE, text=True)
    folder = Path(done.stdout.split("\n")[-2])
    return next(folder.glob("lib/python*/site-packages"), folder)


@cache
def parsed(build: str, module: str) -> ast.Module | None:
    path = packages(build) / module.replace(".", "/")
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return ast.parse(source.read_text()) if source.exists() else None


def names(tree: ast.Module) -> set[object]:
    """Return what is defined, imported, or made available by its name."""
    return {
        found
        for node in ast.walk(tree)
        for found in (
            getattr(node, "name", None),
            getattr(node, "asname", None),
            node.value if isinstance(node, ast.Constant) else None,
        )
    }


def test_every_release_that_is_said_to_start_is_looked_at() -> None:
    assert tested.VLLM in RELEASES
    assert {tested.OLDEST_VLLM, tested.NEWEST_VLLM} == {
        version.rpartition(".")[0] for version in (RELEASES[0], RELEASES[-1])
    }
    assert all(map(startable, RELEASES))
    assert not startable("0.28.0")
    assert not startable("0.33.0")


@pytest.mark.parametrize("build", BUILDS)
def test_the_modules_have_the_names(build: str) -> None:
    lacking = {
        name: module
        for name, module in PRIVATE.items()
        if (tree := parsed(build, module)) is None or name not in names(tree)
    }
    assert not lacking, "see PRIVATE in serve/engines/vllm.py"


@pytest.mark.parametrize("build", BUILDS)
def test_the_modules_log_the_texts(build: str) -> None:
    lacking = {}
    for key, (text, module) in LOGGED.items():
        tree = parsed(build, f"vllm.{module}")
        texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)) if tree else ()
        if not any(isinstance(found, str) and text in found for found in texts):
            lacking[key] = module
    assert not lacking, "see LOGGED in serve/engines/vllm_log.py"


def test_a_release_without_the_names_is_found() -> None:
    """0.33 moved two of them, and is what native hosts with GPUs once got."""
    tree = parsed("0.33.0", "vllm.entrypoints.launchers.cli_args")
    assert tree is None, "0.33 can be looked at anew"
