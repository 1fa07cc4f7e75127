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

# From the bottom up. A module may import what stands on a lower line, and its own family.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("accelerators", "accelerators.*"),
    ("limits",),
    ("raycluster", "errors", "contracts", "events", "last_words", "startup", "templates", "tested"),
    ("usernames",),
    ("decode", "poll", "printable", "requirements", "clean_environment"),
    ("console", "untrusted"),
    ("serve", "serve.*"),
    ("runtimes.native_place",),
    ("runtimes.native_processes",),
    ("spec", "spec.*", "transports", "transports.*", "runtimes", "runtimes.*", "openai_wire*"),
    ("readings", "members"),
    ("tunnel", "tunnel.*", "bench", "bench.*", "batch", "batch.*"),
    ("state", "services", "services.wiring", "services.data_path", "sizing", "sizing.*"),
    ("secrets", "services.ray_node", "room"),
    ("rollout",),
    ("services.certificate",),
    ("services.gateway",),
    ("services.*",),
    ("services.firewall",),
    ("plan", "versions", "payload", "ray_api", "ray_jobs"),
    ("forecast", "forecast.*"),
    ("hub_api", "registry_api", "fence"),
    ("connect",),
    ("dashboard",),
    ("observe", "replicas", "judge", "listeners"),
    ("work", "health", "inside", "lock", "scrape", "folders"),
    ("exchange", "liveness"),
    ("logs", "logs.*"),
    ("spool",),
    ("guard", "neighbours_there"),
    ("needs",),
    ("neighbours",),
    ("leave", "weights", "images", "survey", "probe", "probe.*"),
    ("environments",),
    ("deploy",),
    ("apply",),
    ("export", "export.*"),
    ("up", "exposure"),
    ("checks",),
    ("report_forecast",),
    ("report", "progress"),
    ("drill", "drill.*", "status", "status.*"),
    ("bundle", "bundle.*"),
    ("session",),
    ("endpoint", "from_head", "site"),
    ("commands.options",),
    ("commands.*",),
    ("commands",),
    ("cli",),
)
FAMILIES = (
    "export",
    *("serve", "spec", "openai_wire", "tunnel", "bench", "batch", "drill", "status"),
    *("logs", "bundle", "probe"),
    *("sizing", "forecast", "accelerators"),
    *("transports.ssh", "runtimes.docker", "runtimes.native"),
)
# Modules that decide and never act: no connections, processes, clock or terminal, nor what has any.
PURE = (
    *("requirements", "accelerators", "accelerators.*", "limits"),
    *("export.design", "export.readme", "export.written", "export.formats", "export.compose"),
    *("export.systemd", "export.kuberay"),
    *("errors", "members", "decode", "contracts", "untrusted", "events", "tested", "printable"),
    *("usernames", "clean_environment"),
    *("spec", "spec.*", "state"),
    *("services", "services.*", "logs.lines", "bundle.redact"),
    *("room", "rollout", "plan", "versions", "payload", "templates", "report", "readings"),
    *("sizing", "sizing.*", "forecast", "forecast.*", "report_forecast"),
    *("probe.told", "probe.judge"),
    *("bench.stats", "bench.verdict", "bench.limits", "bench.baseline"),
    *("bench.server", "bench.series", "bench.figures", "judge"),
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
# Packages that stand in few files.
OWNERS: dict[str, tuple[str, ...]] = {
    "paramiko": ("transports.ssh_*",),
    "docker": ("runtimes.docker*",),
    "requests": ("runtimes.docker*",),
    "urllib3": ("runtimes.docker*",),
    "httpcore": ("transports.http",),
    "h11": ("serve.asking.sender",),
    "httptools": ("openai_wire.wire",),
    "uvloop": ("bench.loops",),
    "jinja2": ("templates",),
    "plotly": ("bench.page",),
    "yaml": ("export.written",),
    "cryptography": ("services.certificate", "transports.ssh*"),
    "httpx": (
        "transports.http",
        "dashboard",
        "ray_api",
        "ray_jobs",
        "hub_api",
        "registry_api",
        "survey",
        "deploy",
        "health",
        "exposure",
        "endpoint",
        "scrape",
        "replicas",
        "openai_wire.*",
        "bench.*",
        "drill.*",
        "status.*",
        "bundle.*",
    ),
    "typer": ("cli", "session", "commands.*"),
    "prometheus_client": ("serve.*", "readings"),
    **dict.fromkeys(
        (
            "ray",
            "vllm",
            "torch",
            "transformers",
            "huggingface_hub",
            "starlette",
            "fastapi",
            "uvicorn",
            "aiohttp",
            "pyarrow",
        ),
        ("serve.*",),
    ),
}
# What the laptop reads of the code that runs on the cluster.
SHARED = {
    *("serve.settings", "serve.rootcause", "serve.failures", "serve.wanted", "serve.needed"),
    *(
        "serve.asking.said",
        "serve.asking.coding",
        "serve.adding",
        "serve.environment",
        "serve.peer",
    ),
    *("serve.asking.asker", "serve.asking.result", "serve.asking.sender", "serve.offline.order"),
}
# Sent to hosts, where there may be no more than a Python 3.8.
HOST_CODE = (
    *("runtimes.native_crontab", "runtimes.native_host", "runtimes.native_place"),
    *("runtimes.native_systemd", "runtimes.native_needs", "last_words", "neighbours_there"),
    *("runtimes.native_processes", "runtimes.supervisor", "runtimes.docker_spool"),
    "serve.adding",
    *("serve.transfer", "serve.peer", "logs.on_node", "bundle.on_node"),
)


@dataclass(frozen=True)
class Import:
    """One import: a module of ours by its short name, or a foreign top-level package."""

    name: str
    ours: bool
    only_types: bool


def _short(name: str) -> str:
    return name.removeprefix("raycluster.")


MODULES = {
    _short(".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")): path
    for path in sorted((SOURCE / "raycluster").rglob("*.py"))
}


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return what a module imports, anywhere in it."""
    return tuple(_imports(ast.parse(MODULES[module].read_text()), only_types=False))


def _imports(node: ast.AST, *, only_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (_import(alias.name, only_types) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                known = _short(inner) in MODULES
                yield _import(inner if known else str(child.module), only_types)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, only_types=True)
        else:
            yield from _imports(child, only_types=only_types)


def _import(name: str, only_types: bool) -> Import:
    ours = name.partition(".")[0] == "raycluster"
    return Import(_short(name) if ours else name.partition(".")[0], ours, only_types)


def ours(module: str) -> set[str]:
    """Return the modules of ours that a module imports, for types or in earnest."""
    return {i.name for i in imports(module) if i.ours}


def layer(module: str) -> int:
    """Return the number of the first line that names the module exactly, or else by pattern."""
    exact = [n for n, line in enumerate(LAYERS) if module in line]
    return (exact or [n for n, line in enumerate(LAYERS) if _any(module, line)])[0]


def family(module: str) -> str:
    """Return what a module may always import from: its family, or just itself."""
    return next((f for f in FAMILIES if re.fullmatch(rf"{f}([._].*)?", module)), module)


def _any(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(module, pattern) for pattern in patterns)


def test_every_module_has_its_place_and_every_pattern_a_module() -> None:
    assert [m for m in MODULES if not _any(m, sum(LAYERS, ()))] == []
    patterns = {p for line in (PURE, *OWNERS.values(), HOST_CODE) for p in line}
    assert [p for p in sorted(patterns) if not any(fnmatch(m, p) for m in MODULES)] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_siblings_do_not_know_each_other(module: str) -> None:
    wrong = {
        other
        for other in ours(module)
        if layer(other) >= layer(module) and family(other) != family(module)
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


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_stands_in_its_own_files(package: str) -> None:
    users = {m for m in MODULES for i in imports(m) if i.name == package and not i.ours}
    assert {m for m in users if not _any(m, OWNERS[package])} == set()


def test_the_laptop_reads_little_of_what_runs_on_the_cluster() -> None:
    outside = {m for m in MODULES if family(m) != "serve"}
    assert {o for m in outside for o in ours(m) if family(o) == "serve"} == SHARED
    seen: dict[str, str] = {}
    for module in SHARED:
        _collect(module, module, seen)
    foreign = {name: way for name, way in seen.items() if name not in MODULES}
    assert set(foreign) - {*sys.stdlib_module_names} == {"h11"}


@pytest.mark.parametrize("module", HOST_CODE)
def test_what_is_sent_to_hosts_needs_the_standard_library_alone(module: str) -> None:
    names = {i.name for i in imports(module)}
    assert names <= {*sys.stdlib_module_names, *HOST_CODE}


@pytest.mark.parametrize("module", [m for m in MODULES if not _any(m, ("spec.*", "runtimes.*"))])
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
