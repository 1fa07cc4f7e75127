"""The environment over `.env` over the file: RAYCLUSTER__HEAD__PORT=22 sets `head.port`."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from raycluster.core.errors import SpecError
from raycluster.spec import shape
from raycluster.spec.explain import suggest
from raycluster.spec.lines import Location

SEPARATOR = "__"


def read_dotenv(path: Path) -> dict[str, str]:
    """Return the variables of a `.env` file, or none when there is no such file."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise SpecError("is not UTF-8", where=str(path)) from error
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            whole = binding.original.string
            blank = whole[: len(whole) - len(whole.lstrip())].count("\n")
            raise SpecError(
                f"line {binding.original.line + blank} cannot be read",
                where=str(path),
                hint="write it as NAME=value, with quotes around a value with spaces or quotes",
            )
    found = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in found.items() if value is not None}


class Layers(PydanticBaseSettingsSource):
    """One settings source that also knows which variable set what.

    `document` is the merged whole, `origins` the places that variables set (with where from), and
    `problems` a sentence for each variable that names no setting or holds no fitting value.
    """

    def __init__(
        self,
        settings_cls: type[BaseSettings],
        document: Mapping[str, Any],
        layers: Mapping[str, Mapping[str, str]],
    ) -> None:
        super().__init__(settings_cls)
        self.document: dict[str, Any] = copy.deepcopy(dict(document))
        self.origins: dict[Location, tuple[str, str]] = {}
        self.problems: list[tuple[str, str]] = []
        self._prefix: str = self.config.get("env_prefix") or ""
        for layer, variables in layers.items():
            for name in sorted(variables, key=lambda n: (n.count(SEPARATOR), n)):
                if name.upper().startswith(self._prefix):
                    self._apply(layer, name, variables[name])

    def __call__(self) -> dict[str, Any]:
        return self.document

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = field.alias or field_name
        return self.document.get(name), name, False

    def _apply(self, layer: str, name: str, text: str) -> None:
        try:
            location, kind = self._place(name)
            self._set(location, _value(text, kind))
        except ValueError as error:
            self.problems.append((layer, f"{name}: {error}"))
        else:
            self.origins[location] = (layer, name)

    def _place(self, name: str) -> tuple[Location, object]:
        parts = name[len(self._prefix) :].split(SEPARATOR)
        kind: object = self.settings_cls
        location: Location = ()
        for position, part in enumerate(parts):
            known = shape.keys(kind)
            if part.lower() in known:
                location, kind = (*location, part.lower()), known[part.lower()]
            elif (free := shape.values(kind)) is not None and shape.keys(free):
                location, kind = (*location, part), free
            elif free is not None:
                rest = SEPARATOR.join(parts[position:])
                return (*location, rest.lower() if free is Any else rest), free
            elif (item := shape.items(kind)) is not None and part.isdecimal():
                location, kind = (*location, int(part)), item
            else:
                before = self._prefix + "".join(p + SEPARATOR for p in parts[:position])
                raise ValueError(f"unknown setting{_suggest(before, part, known)}")
        return location, kind

    def _set(self, location: Location, value: object) -> None:
        node: Any = self.document
        for part, following in zip(location, (*location[1:], None), strict=True):
            if isinstance(part, int) and part > len(node):
                raise ValueError(f"the list has {len(node)} entries, and numbering starts at 0")
            if isinstance(part, int) and part == len(node):
                node.append({})
            if following is None:
                node[part] = _merged(_get(node, part), value)
                return
            wanted: type[Any] = list if isinstance(following, int) else dict
            if not isinstance(_get(node, part), wanted):
                node[part] = wanted()
            node = node[part]


def _suggest(before: str, part: str, known: Iterable[str]) -> str:
    return suggest(before + part.upper(), [before + key.upper() for key in known])


def _value(text: str, kind: object) -> object:
    """Read JSON where a table, a list or anything may stand; leave single values to the model."""
    if kind is Any or shape.is_table_or_list(kind) or text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            if kind is not Any:
                raise ValueError("a JSON table or list is expected") from error
    return text


def _get(node: dict[str, Any] | list[Any], part: int | str) -> object:
    return node.get(str(part)) if isinstance(node, dict) else node[int(part)]


def _merged(old: object, new: object) -> object:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new
