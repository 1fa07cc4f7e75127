"""Where the test of a module is: at the mirrored place, or on a list that may only shrink."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from tests.unit.test_imports import MODULES, SOURCE, imported_modules

CHECKOUT = SOURCE.parent
LISTED = tomllib.loads(Path(__file__).with_name("tested_elsewhere.toml").read_text())
IMPORTED = {module: file for file, modules in LISTED["imported"].items() for module in modules}
STARTED = {module: file for file, modules in LISTED["started"].items() for module in modules}
MOST_LISTED = {"imported": 127, "started": 28}
"""How long the lists are: lower these with every entry that gets a test file of its own."""


def does_something(module: str) -> bool:
    """Tell whether a module has a function with a body."""
    functions = (
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return any(
        not isinstance(f.body[-1], ast.Expr | ast.Pass) or len(f.body) > 2 for f in functions
    )


def mirrored(module: str) -> Path:
    """Return where the test file of a module would be."""
    *folders, name = module.split(".")
    return Path(__file__).parent.joinpath(*folders, f"test_{name}.py")


def reached(file: Path) -> set[str]:
    """Return the modules that a test file imports, and those that these import."""
    first = imported_modules(file) & MODULES.keys()
    return first.union(*(imported_modules(MODULES[module]) for module in first))


def problem(module: str) -> str:
    """Return what is wrong with where a module is tested, or ""."""
    here, there = mirrored(module).relative_to(CHECKOUT), {**STARTED, **IMPORTED}.get(module)
    if (CHECKOUT / here).exists():
        return f"{here} is there: take {module} off tested_elsewhere.toml" if there else ""
    if there is None:
        return f"there is no {here}, nor a line in tested_elsewhere.toml"
    if not (CHECKOUT / there).exists():
        return f"there is no {there}, which is to test {module}"
    if module in IMPORTED and module not in reached(CHECKOUT / there):
        return f"{there} does not import {module}"
    return ""


def test_every_module_has_a_test_file() -> None:
    assert [why for module in MODULES if does_something(module) and (why := problem(module))] == []


def test_the_list_names_modules_once_and_may_only_shrink() -> None:
    named = [m for part in LISTED.values() for modules in part.values() for m in modules]
    assert [m for m in named if m not in MODULES or not does_something(m)] == []
    assert len(named) == len(set(named))
    assert {"imported": len(IMPORTED), "started": len(STARTED)} == MOST_LISTED
