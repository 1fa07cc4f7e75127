"""A commented `cluster.toml` made from the models, so that neither can drift; pure.

Lines that begin with `## ` are words; lines that begin with `# ` are settings to uncomment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raycluster.spec import shape
from raycluster.spec.models import ClusterSpec, Host, Runtime, Ssh, Worker

Values = Mapping[str, Any]
INTRODUCTION = """\
## A cluster of raycluster. Check it with `raycluster check`, start it with `raycluster up`.
## Lines that begin with `# ` are optional settings with their default or an example.
## Every setting can also be set by an environment variable or in `.env`: RAYCLUSTER__HEAD__PORT=22
"""
AS_HEAD = "All keys of [head] can be set here too, and [workers.runtime] like [head.runtime]."


def example(
    *, cluster: Values, head: Values, workers: Sequence[Values], models: Sequence[Values]
) -> str:
    """Return a whole file in which the given values are set and all others are commented."""
    parts = [INTRODUCTION + "\n".join(_fields(ClusterSpec, {"schema": 1}, only=("schema",)))]
    fields = ClusterSpec.model_fields
    given: Mapping[str, Sequence[Values]] = {
        "cluster": [cluster],
        "head": [head],
        "workers": workers,
        "models": models,
    }
    for key, field in fields.items():
        if key != "schema_version":
            parts += _part(key, field, given.get(key, [{}]))
    return "\n\n".join(parts) + "\n"


def _part(key: str, field: FieldInfo, given: Sequence[Values]) -> Iterator[str]:
    """Yield one block per table: of a list of tables, only the first is commented at length."""
    item = shape.items(field.annotation)
    header = f"[{key}]" if item is None else f"[[{key}]]"
    model = _model(field.annotation if item is None else item)
    if not given:
        yield f"## {field.description}\n# {header}\n" + "\n".join(_example_table(model))
    for position, values in enumerate(given):
        if position:
            yield "\n".join([header, *(f"{_key(k)} = {toml_value(v)}" for k, v in values.items())])
            continue
        optional = field.default is None and not values
        lines = [f"## {field.description}", f"# {header}" if optional else header]
        yield "\n".join([*lines, *_table(field, model, values)])
        if model is Host:
            yield "\n".join(
                [f"## {_words(Host, 'runtime')}", f"[{key}.runtime]", *_fields(Runtime, {})]
            )


def _table(field: FieldInfo, model: type[BaseModel] | None, values: Values) -> Iterator[str]:
    if model is None:
        for key, value in field.examples[0].items() if field.examples else ():
            yield f"# {_key(key)} = {toml_value(value)}"
    elif model is Worker:
        yield f"## {AS_HEAD}"
        yield from _fields(model, values, only=("name", *values))
    elif model is Host:
        own = [k for k in Host.model_fields if k not in {*Ssh.model_fields, "runtime"}]
        yield from _fields(model, values, only=(*own, *Ssh.model_fields))
    else:
        yield from _fields(model, values)


def _example_table(model: type[BaseModel] | None) -> Iterator[str]:
    for name, field in (model.model_fields if model else {}).items():
        if field.examples and name in {"name", "host"}:
            yield f"# {name} = {toml_value(field.examples[0])}"


def _fields(
    model: type[BaseModel], values: Values, only: Sequence[str] | None = None
) -> Iterator[str]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key in dict.fromkeys(only or fields):
        yield f"## {fields[key].description}"
        if key in values:
            yield f"{key} = {toml_value(values[key])}"
        else:
            yield f"# {key} = {toml_value(_sample(fields[key]))}"


def _sample(field: FieldInfo) -> object:
    """Return the example, else the default."""
    if field.examples:
        return field.examples[0]
    if field.default is None or field.default is PydanticUndefined:
        raise ValueError(f"a field without an example: {field.description}")
    return field.default


def _words(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].description or ""


def _model(kind: object) -> type[BaseModel] | None:
    for plain in shape.branches(kind):
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            return plain
    return None


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(value: object) -> str:
    """Return what JSON writes, which is TOML but for escaped halves of a character, and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, BaseModel):
        return toml_value(value.model_dump(exclude_none=True))
    if isinstance(value, float):
        return repr(value)
    return _text(value)
