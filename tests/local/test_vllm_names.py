"""What we use of vLLM without its promise is still there, in the node's environment."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from raycluster.serve.engines.vllm import PRIVATE
from raycluster.serve.engines.vllm_log import LOGGED

pytestmark = pytest.mark.local

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packages() -> Path:
    done = subprocess.run(
        [ROOT / "scripts" / "node-env"], check=True, stdout=subprocess.PIPE, text=True
    )
    (folder,) = Path(done.stdout.split("\n")[-2]).glob("lib/python*/site-packages")
    return folder


def parsed(packages: Path, module: str) -> ast.Module:
    path = packages / module.replace(".", "/")
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return ast.parse(source.read_text())


@pytest.mark.parametrize(("name", "module"), PRIVATE.items())
def test_the_module_has_the_name(packages: Path, name: str, module: str) -> None:
    names = {
        found
        for node in ast.walk(parsed(packages, module))
        for found in (
            getattr(node, "name", None),
            getattr(node, "asname", None),
            node.value if isinstance(node, ast.Constant) else None,
        )
    }
    assert name in names, f"vLLM's {module} has no {name}: see PRIVATE in serve/engines/vllm.py"


@pytest.mark.parametrize(("text", "module"), LOGGED.values())
def test_the_module_logs_the_text(packages: Path, text: str, module: str) -> None:
    texts = [
        node.value
        for node in ast.walk(parsed(packages, f"vllm.{module}"))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    where = "see LOGGED in serve/engines/vllm_log.py"
    assert any(text in found for found in texts), f"vLLM's {module} logs no {text!r}: {where}"
