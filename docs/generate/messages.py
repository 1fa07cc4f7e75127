"""Every message that the package can end with, from its source: what is said, and the next step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from docs.generate.errors import classes
from docs.generate.text import cell, table
from raycluster.errors import SpecError

_SIGNS = re.compile(r"[\\*_\[\]]")
PACKAGE = Path(__file__).parents[2] / "src" / "raycluster"
GAP = "…"
"""Stands for what is filled in when the program runs."""

Told = tuple[str, str]
"""A message, and the next step or ""."""

FOUND = {"Problem": (1, 2, "What status says"), "Finding": (3, 4, "What check says")}
"""Classes beside errors: where among their arguments message and next step stand, and a title."""

CHECKED = "ValueError"
"""What the models of the spec raise; it reaches a person as a SpecError with its line."""


def messages_reference() -> str:
    """Return a section for each class of error, with its messages in the order of the alphabet."""
    said = messages()
    titles = {e.__name__: f"## {e.__name__}\n\nExit code {e.exit_code}." for e in classes()}
    titles |= {name: f"## {title}\n\nExit code 3." for name, (*_, title) in FOUND.items()}
    parts = []
    for name, title in titles.items():
        rows = sorted({told for told in said[name] if told[0].strip(f"{GAP} :")})
        cells = [(cell(plain(what)), cell(plain(hint))) for what, hint in rows]
        if cells:
            parts.append(f"{title}\n\n{table(('message', 'next'), cells)}")
    return "\n\n".join(parts)


def messages() -> Mapping[str, Sequence[Told]]:
    """Return what is said with each class of error, by its name, as the source has it."""
    said: dict[str, list[Told]] = {n: [] for n in (*(e.__name__ for e in classes()), *FOUND)}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = {name: name for name in said}
        if path.parent.name == "spec" and path.name != "example.py":
            names[CHECKED] = SpecError.__name__
        tree = ast.parse(path.read_text())
        for scope in _scopes(tree):
            values = {**_values(tree.body), **_values(_own(scope))}
            for call in (n for n in _own(scope) if isinstance(n, ast.Call)):
                if isinstance(call.func, ast.Name) and call.func.id in names and call.args:
                    said[names[call.func.id]] += _said(call, values)
    return said


def _said(call: ast.Call, values: Mapping[str, list[str]]) -> Iterator[Told]:
    at_what, at_hint, _ = FOUND.get(getattr(call.func, "id", ""), (0, len(call.args), ""))
    given = [*call.args, *(k.value for k in call.keywords if k.arg == "hint")]
    hint = given[at_hint] if at_hint < len(given) else ast.Constant("")
    whats, hints = texts(given[at_what], values), texts(hint, values)
    together = len(whats) == len(hints) > 1  # assigned in pairs, one pair for each case
    yield from zip(whats, hints, strict=True) if together else product(whats, hints)


def texts(node: ast.expr, values: Mapping[str, list[str]]) -> list[str]:
    """Return what an expression may be, with `…` for what the source does not tell."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(p.value if isinstance(p, ast.Constant) else GAP for p in parts)]  # type: ignore[misc]
        case ast.BinOp(op=ast.Add()):
            pairs = product(texts(node.left, values), texts(node.right, values))
            return [left + right for left, right in pairs]
        case ast.IfExp():
            return texts(node.body, values) + texts(node.orelse, values)
        case ast.Name(id=name) if name in values:
            return values[name]
    return [GAP]


def _scopes(tree: ast.Module) -> Iterator[ast.AST]:
    yield tree
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def _own(scope: ast.AST) -> list[ast.AST]:
    """Return all nodes of a module or function but those of functions inside."""
    found: list[ast.AST] = []
    waiting = list(ast.iter_child_nodes(scope))
    for node in waiting:
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def _values(nodes: Sequence[ast.AST]) -> dict[str, list[str]]:
    """Return the texts that names get, in the order of the source."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=False))
        else:
            pairs = [(target, value)]
        for name, given in pairs:
            if isinstance(name, ast.Name) and (text := texts(given, {})) != [GAP]:
                found.setdefault(name.id, []).extend(text)
    return found


def plain(text: str) -> str:
    """Return text in which nothing is Markdown or HTML but what stands between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain(text.replace("`", "'"))
    return "`".join(p if i % 2 else _escaped(p) for i, p in enumerate(parts))


def _escaped(text: str) -> str:
    return _SIGNS.sub(r"\\\g<0>", text).replace("<", "&lt;")
