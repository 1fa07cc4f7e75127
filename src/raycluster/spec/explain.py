"""Pydantic's findings as sentences with a line or variable, a path and a suggestion; pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raycluster.spec import shape
from raycluster.spec.lines import Location, lines_of, nearest_line
from raycluster.spec.types import holds_secrets, shown


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


Origins = Mapping[Location, tuple[str, str]]
"""Place -> the layer (such as `environment`) and the variable that set it."""

_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is missing",
    "literal_error": lambda context: f"{context['expected']} is expected",
    "greater_than_equal": lambda context: f"{_plain(context['ge'])} or more is expected",
    "greater_than": lambda context: f"more than {_plain(context['gt'])} is expected",
    "less_than_equal": lambda context: f"at most {_plain(context['le'])} is expected",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda context: f"at most {context['max_length']} characters are expected",
    "string_unicode": lambda _: "UTF-8 text is expected",
    "string_type": lambda _: "text in quotes is expected",
    "bool_type": lambda _: "true or false is expected",
    "bool_parsing": lambda _: "true or false is expected",
    "int_parsing": lambda _: "a whole number is expected",
    "int_parsing_size": lambda _: "a smaller number is expected",
    "int_type": lambda _: "a whole number is expected",
    "int_from_float": lambda _: "a whole number is expected",
    "float_parsing": lambda _: "a number is expected",
    "float_type": lambda _: "a number is expected",
    "finite_number": lambda _: "a finite number is expected",
    "model_type": lambda _: "a table is expected",
    "model_attributes_type": lambda _: "a table is expected",
    "dict_type": lambda _: "a table is expected",
    "tuple_type": lambda _: "a list is expected",
    "list_type": lambda _: "a list is expected",
}
_TABLE = {"model_type", "model_attributes_type", "dict_type"}
_BARE = {"missing", "string_too_short"}


def explain(
    error: ValidationError,
    *,
    text: str,
    document: Mapping[str, Any],
    model: type[BaseModel],
    origins: Origins,
) -> list[str]:
    """Return a line per finding, such as `line 12: workers[1].port: ...`, in the file's order.

    `document` is what was checked. What a variable set is named by the variable instead.
    """
    lines = lines_of(text)
    found: dict[Location, tuple[int, str]] = {}
    for detail in error.errors(include_url=False):
        location = _in_document(detail, document)
        sentence = _sentence(detail, location, model)
        if variable := _origin(location, origins):
            finding = (0, f"{variable}: {sentence}")
        else:
            line = nearest_line(lines, location) or 0
            place = f"line {line}: " if line else ""
            finding = (line, place + f"{_path(location)}: {sentence}".removeprefix(": "))
        found.setdefault(location, finding)
    return [finding for _, finding in sorted(found.values())]


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` for a misspelt word, or what is known here."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1) or difflib.get_close_matches(
        word.lower(), known, n=1
    )
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known here: {', '.join(known)}" if known else ""


def _in_document(detail: ErrorDetails, document: object) -> Location:
    """Drop from a finding's place what pydantic adds for unions and keys, which no file holds."""
    kept: Location = ()
    node: Any = document
    for part in detail["loc"]:
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if in_list or (isinstance(node, dict) and part in node):
            kept, node = (*kept, part), node[part]
    missing = detail["type"] == "missing"
    return (*kept, detail["loc"][-1]) if missing else kept


def _origin(location: Location, origins: Origins) -> str:
    """Return `environment: NAME` and the path below it, or nothing for what the file says."""
    for length in range(len(location), 0, -1):
        if found := origins.get(location[:length]):
            return ": ".join(filter(None, [*found, _path(location[length:])]))
    return ""


def _path(location: Location) -> str:
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location)
    return path.removeprefix(".")


def _sentence(detail: ErrorDetails, location: Location, model: type[BaseModel]) -> str:
    given, kind = detail["input"], detail["type"]
    context = detail.get("ctx") or {}
    if kind == "extra_forbidden":
        known = shape.keys(shape.at(model, location[:-1]))
        return "unknown key" + suggest(str(location[-1]), known)
    if kind == "value_error":
        return str(context["error"])
    if kind in _TABLE and isinstance(given, list) and given and isinstance(given[0], dict):
        return f"one table is expected: `[{_path(location)}]`, not `[[{_path(location)}]]`"
    if kind == "tuple_type" and isinstance(given, dict):
        return f"a list is expected: `[[{_path(location)}]]` for tables"
    words = _SENTENCES[kind](context) if kind in _SENTENCES else detail["msg"].lower()
    hidden = kind in _BARE or isinstance(given, dict | list) or _secret(location, model)
    return words if hidden else f"{words}, not {shown(given)}"


def _secret(location: Location, model: type[BaseModel]) -> bool:
    kinds = [shape.at(model, location[:length]) for length in range(1, len(location) + 1)]
    return any(map(holds_secrets, kinds)) or any(_tables(kind) for kind in kinds[-1:])


def _tables(kind: object) -> bool:
    """Tell whether tables stand here that have secrets, one of which may have taken their place."""
    return any(
        any(map(holds_secrets, shape.keys(each).values())) for each in (kind, shape.values(kind))
    )
