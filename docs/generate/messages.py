"""Every message that the package can end with, from its source: what is said, and the next step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from docs.generate.errors import classes
from docs.generate.source import GAP, Values, calls, texts
from docs.generate.text import cell, table
from raycluster.core.errors import SpecError

_SIGNS = re.compile(r"[\\*_\[\]]")
PACKAGE = Path(__file__).parents[2] / "src" / "raycluster"

Told = tuple[str, str]
"""A message, and the next step or ""."""

FOUND = {
    "Issue": (1, 2, "What status says", "Problems end with exit code 3, warnings do not."),
    "Problem": (1, 2, "What a plan says", "Problems end `up` before it changes anything."),
    "Finding": (3, 4, "What check says", "Exit code 3."),
}
"""Classes beside errors: where among their arguments message and next step stand, and a title."""

CHECKED = "ValueError"
"""What the models of the spec raise; it reaches a person as a SpecError with its line."""


def messages_reference() -> str:
    """Return a section for each class of error, with its messages in the order of the alphabet."""
    said = messages()
    titles = {e.__name__: f"## {e.__name__}\n\nExit code {e.exit_code}." for e in classes()}
    titles |= {name: f"## {title}\n\n{words}" for name, (*_, title, words) in FOUND.items()}
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
        for call, values in calls(ast.parse(path.read_text())):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name in names and call.args and not _is_good(call):
                said[names[name]] += _said(call, name, values)
    return said


def _is_good(call: ast.Call) -> bool:
    """Tell whether a finding of `check` says that all checks passed."""
    return any(isinstance(arg, ast.Constant) and arg.value is True for arg in call.args)


def _said(call: ast.Call, name: str, values: Values) -> Iterator[Told]:
    at_what, at_hint, *_ = FOUND.get(name, (0, len(call.args)))
    given = [*call.args, *(k.value for k in call.keywords if k.arg == "hint")]
    hint = given[int(at_hint)] if int(at_hint) < len(given) else ast.Constant("")
    whats, hints = texts(given[int(at_what)], values), texts(hint, values)
    together = len(whats) == len(hints) > 1  # assigned in pairs, one pair for each case
    yield from zip(whats, hints, strict=True) if together else product(whats, hints)


def plain(text: str) -> str:
    """Return text in which nothing is Markdown or HTML but what stands between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain(text.replace("`", "'"))
    return "`".join(p if i % 2 else _escaped(p) for i, p in enumerate(parts))


def _escaped(text: str) -> str:
    return _SIGNS.sub(r"\\\g<0>", text).replace("<", "&lt;")
