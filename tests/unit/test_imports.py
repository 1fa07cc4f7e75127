"""Who may import whom: the rules that ARCHITECTURE.md states."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

# 1. Packages from left to right: each imports what stands to its left, and itself.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("requirements", "serve"),
    ("spec", "openai_client"),
    ("state", "services"),
    ("hosts",),
    ("plan", "observe"),
    ("apply",),
    ("check",),
    ("report",),
    ("batch", "bench", "drill", "export", "logs", "recipes", "status", "support", "tunnel"),
    ("commands",),
    ("cli",),
)
# 2. What decides touches nothing: no connection, process, clock or terminal, nor what has one.
PURE = (
    *("state.*", "services.*", "plan.*", "report.outcome", "report.forecast"),
    *("requirements", "core.accelerators.*", "core.cgroups", "core.errors", "core.interfaces"),
    *("core.events", "core.tested_versions", "core.printable", "core.untrusted", "core.usernames"),
    *("core.stored_json", "core.clean_environment", "core.last_words", "core.templates"),
    *("spec", "spec.[!s]*", "spec.se[!c]*", "spec.sections", "spec.shape", "spec.secret_values"),
    *("observe.diagnosis", "observe.engine_metrics"),
    *("apply.engine_probe.told", "apply.engine_probe.judge"),
    *("export.design", "export.readme", "export.tree", "export.formats", "export.compose"),
    *("export.systemd", "export.kuberay"),
    *("logs.lines", "support.redact", "recipes.catalog", "recipes.fits"),
    *("bench.stats", "bench.verdict", "bench.limits", "bench.baseline"),
    *("bench.server", "bench.series", "bench.figures"),
    *("status.figures", "status.gpus", "status.json", "status.view", "status.warnings"),
)
IMPURE = {
    *("socket", "subprocess", "threading", "asyncio", "time", "datetime"),
    *("paramiko", "docker", "requests", "urllib3", "httpx", "httpcore", "typer"),
}
NO_CLOCK = {  # fixed dates, and those of a spec, never now
    ("services.certificate", "datetime"),
    ("spec.types", "datetime"),
}
# 3. `plan` and `observe` do not know each other, nor do transports and runtimes.
APART = (
    ("hosts.transports.ssh*", "hosts.transports.local"),
    ("hosts.transports.*", "hosts.runtimes.*"),
    ("hosts.runtimes.docker*", "hosts.runtimes.native*"),
)
# 4. Features do not know each other, but for these.
EDGES = {
    ("drill", "bench"),  # the load of a drill, and its figures
    ("status", "tunnel"),  # whether a tunnel is open
    ("support", "status"),  # an archive holds what `status` shows
}
# 5. What the laptop reads of the code that runs on the cluster.
SHARED = {
    *("serve.settings", "serve.rootcause", "serve.failures", "serve.model_refs", "serve.adding"),
    *("serve.environment", "serve.peer", "serve.offline.order"),
    *("serve.asking.result", "serve.asking.retrying_client", "serve.asking.sender"),
}
# Sent to hosts, where there may be no more than a Python 3.8.
HOST_CODE = (
    *("hosts.runtimes.native_crontab", "hosts.runtimes.native_host", "hosts.runtimes.native_place"),
    *("hosts.runtimes.native_systemd", "hosts.runtimes.native_needs", "core.last_words"),
    *("hosts.runtimes.native_processes", "hosts.runtimes.supervisor"),
    "hosts.runtimes.docker_image_staging",
    *("apply.preconditions.connectivity_on_host", "serve.adding"),
    *("serve.transfer", "serve.peer", "logs.on_node", "support.on_node"),
)
# Packages of others that stand in few places.
OWNERS: dict[str, tuple[str, ...]] = {
    "httpx": (
        *("hosts.http", "hosts.dashboard", "hosts.ray_api", "observe.health"),
        *("observe.model_hub", "observe.image_registry", "observe.replica_endpoints"),
        *("apply.applications", "apply.smoke_test", "apply.look_ahead", "check.open_ports"),
        *("tunnel.cluster_api", "openai_client.*", "bench.*", "drill.*", "status.*", "support.*"),
    ),
    "paramiko": ("hosts.transports.ssh_*",),
    **dict.fromkeys(("docker", "requests", "urllib3"), ("hosts.runtimes.docker*",)),
    "httpcore": ("hosts.http",),
    "h11": ("serve.asking.sender",),
    "httptools": ("openai_client.wire",),
    "uvloop": ("bench.loops",),
    "jinja2": ("core.templates",),
    "plotly": ("bench.page",),
    "yaml": ("export.tree",),
    "cryptography": ("services.certificate", "hosts.transports.ssh*"),
    "typer": ("cli", "commands.*"),
    "prometheus_client": ("serve.*", "observe.engine_metrics"),
    **dict.fromkeys(
        (
            *("ray", "vllm", "torch", "transformers", "huggingface_hub", "starlette"),
            *("fastapi", "uvicorn", "aiohttp"),
        ),
        ("serve.*",),
    ),
    "pyarrow": ("serve.*", "openai_client.parquet"),
}


@dataclass(frozen=True)
class Import:
    """One import: a module of ours by its short name, or a foreign top-level package."""

    name: str
    ours: bool
    only_types: bool
    late: bool
    """Whether a function imports it when it runs."""


def _short(name: str) -> str:
    return name.removeprefix("raycluster.")


MODULES = {
    _short(".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")): path
    for path in sorted((SOURCE / "raycluster").rglob("*.py"))
}


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return what a module imports, anywhere in it."""
    return tuple(_imports(ast.parse(MODULES[module].read_text())))


def _imports(node: ast.AST, *, types: bool = False, late: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (_import(alias.name, types, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                known = _short(inner) in MODULES
                yield _import(inner if known else str(child.module), types, late)
        else:
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(child, types=types or for_types, late=late or inside)


def _import(name: str, types: bool, late: bool) -> Import:
    ours = name.partition(".")[0] == "raycluster"
    return Import(_short(name) if ours else name.partition(".")[0], ours, types, late)


def ours(module: str) -> set[str]:
    """Return the modules of ours that a module imports, for types or in earnest."""
    return {i.name for i in imports(module) if i.ours and i.name != "raycluster"}


@cache
def imported_modules(file: Path) -> set[str]:
    """Return what any Python file imports of ours, by short names."""
    return {i.name for i in _imports(ast.parse(file.read_text())) if i.ours}


def package(module: str) -> str:
    """Return the package below the root in which a module is."""
    return module.partition(".")[0]


def _any(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns)


def test_the_root_holds_packages_and_the_command_line_alone() -> None:
    flat = {path.name for path in (SOURCE / "raycluster").glob("*.py")}
    assert flat == {"__init__.py", "cli.py"}
    assert {package(m) for m in MODULES} == {"raycluster", *sum(LEVELS, ())}


def test_every_pattern_names_a_module() -> None:
    lines = (PURE, *OWNERS.values(), HOST_CODE, *APART)
    patterns = {p for line in lines for p in line}
    assert [p for p in sorted(patterns) if not any(fnmatch(m, p) for m in MODULES)] == []
    assert {(package(m), package(o)) for m in MODULES for o in ours(m)} >= EDGES


@pytest.mark.parametrize("module", [m for m in MODULES if m != "raycluster"])
def test_imports_go_left(module: str) -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    here = package(module)
    wrong = {
        other
        for other in ours(module)
        if package(other) != here
        and level[package(other)] >= level[here]
        and (here, package(other)) not in EDGES
    }
    assert wrong == set()


@pytest.mark.parametrize("module", [m for m in MODULES if re.match(r"commands\.[a-z]", m)])
def test_no_command_knows_another(module: str) -> None:
    assert {other for other in ours(module) if re.match(r"commands\.[a-z]", other)} == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " > ".join((*way, module))
        if module in done:
            return
        for each in imports(module):
            if each.only_types or each.late:
                continue
            if each.name in MODULES and each.name not in ("raycluster", module):
                visit(each.name, (*way, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("kinds", APART)
def test_these_do_not_know_each_other(kinds: tuple[str, str]) -> None:
    for one, other in (kinds, kinds[::-1]):
        wrong = {
            (module, known)
            for module in MODULES
            for known in ours(module)
            if fnmatch(module, one) and fnmatch(known, other)
        }
        assert wrong == set()


@pytest.mark.parametrize("module", [m for m in MODULES if _any(m, PURE)])
def test_what_decides_touches_nothing(module: str) -> None:
    seen: dict[str, str] = {}
    _collect(module, module, seen)
    assert {package: way for package, way in seen.items() if package in IMPURE} == {}


def _collect(module: str, way: str, seen: dict[str, str]) -> None:
    """Note every package that comes with a module, and the way to it."""
    for imported in imports(module):
        if imported.only_types or imported.name in seen:
            continue
        if (module, imported.name) in NO_CLOCK:
            continue
        seen[imported.name] = way
        if imported.ours:
            _collect(imported.name, f"{way} > {imported.name}", seen)


@pytest.mark.parametrize("foreign", OWNERS)
def test_a_package_of_others_stands_in_its_own_files(foreign: str) -> None:
    users = {m for m in MODULES for i in imports(m) if i.name == foreign and not i.ours}
    assert {m for m in users if not _any(m, OWNERS[foreign])} == set()


def test_the_laptop_reads_little_of_what_runs_on_the_cluster() -> None:
    assert {o for m in MODULES if package(m) == "serve" for o in ours(m)} <= {
        m for m in MODULES if package(m) == "serve"
    }
    outside = {m for m in MODULES if package(m) != "serve"}
    assert {o for m in outside for o in ours(m) if package(o) == "serve"} == SHARED
    seen: dict[str, str] = {}
    for module in SHARED:
        _collect(module, module, seen)
    foreign = {name: way for name, way in seen.items() if name not in MODULES}
    assert set(foreign) - {*sys.stdlib_module_names} == {"h11"}


@pytest.mark.parametrize("module", HOST_CODE)
def test_what_is_sent_to_hosts_needs_the_standard_library_alone(module: str) -> None:
    names = {i.name for i in imports(module)}
    assert names <= {*sys.stdlib_module_names, *HOST_CODE}


NO_KINDS = ("spec.*", "hosts.runtimes.*")


@pytest.mark.parametrize("module", [m for m in MODULES if not _any(m, NO_KINDS)])
def test_no_branch_on_the_kind_of_a_runtime(module: str) -> None:
    compared = {
        value.value
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Compare)
        for value in ast.walk(node)
        if isinstance(value, ast.Constant)
    }
    assert compared & {"docker", "native"} == set()


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("paramiko", "docker", "requests", "httpx", "pydantic", "asyncio", "ray", "vllm")
    program = f"import sys, raycluster.cli; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
