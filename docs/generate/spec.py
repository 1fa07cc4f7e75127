"""The tables and keys of `cluster.toml`, from the models that read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generate.text import cell, code, table
from raycluster.spec import ClusterSpec
from raycluster.spec.example import toml_value
from raycluster.spec.layers import SEPARATOR

Schema = Mapping[str, Any]
TABLES_FIRST = ("cluster", "ssh", "runtime", "head", "workers", "models")
PREFIX = str(ClusterSpec.model_config["env_prefix"])
WORDS = {"string": "text", "integer": "whole number", "boolean": "true or false"}
WIDEST = 1_000_000
"""A limit that is there to refuse nonsense, and no fact for a reader."""


def spec_reference() -> str:
    """Return a section for each table of a spec, with all its keys."""
    schema = ClusterSpec.model_json_schema(by_alias=True)
    return "\n\n".join(_sections(schema, schema["$defs"]))


def _sections(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[str]:
    properties: Mapping[str, Schema] = schema["properties"]
    plain = {k: v for k, v in properties.items() if not _table_of(v) and "properties" not in v}
    single = {k: v for k, v in plain.items() if v.get("type") != "object"}
    yield "## Top of the file\n\n" + _keys(single, PREFIX, required=())
    shown: set[str] = set()
    for key, field in properties.items():
        if name := _table_of(field):
            many = field.get("type") == "array"
            yield from _section(key, field, name, definitions, shown, many=many)
    for key, field in plain.items():
        if field.get("type") == "object":
            yield (
                f"## [{key}]\n\n{field['description']} Its keys are names of your choice.\n\n"
                f"Example: {code(toml_value(field['examples'][0]))}."
            )


def _section(
    path: str,
    field: Schema,
    name: str,
    definitions: Mapping[str, Schema],
    shown: set[str],
    *,
    many: bool,
) -> Iterator[str]:
    definition = definitions[name]
    title = f"## [[{path}]]" if many else f"## [{path}]"
    words = field.get("description") or definition["description"]
    optional = _is_optional(field) and field.get("default", 0) is None
    parts = [title, words + (" Left out: there is none." if optional else "")]
    if name == "Worker":
        parts.append("Every key of [\\[head\\]](#head) may stand here too.")
    elif name == "Host":
        parts.append("Every key of [\\[ssh\\]](#ssh) may stand here too, for this host alone.")
    own = _own(name, definition, definitions)
    variable = f"{PREFIX}{path.upper().replace('.', SEPARATOR)}{SEPARATOR}"
    variable += f"0{SEPARATOR}" if many else ""
    parts.append(_keys(own, variable, definition.get("required", ())))
    yield "\n\n".join(part for part in parts if part)
    shown.add(name)
    for key, below in own.items():
        if (lower := _table_of(below)) and lower not in shown:
            free = ".NAME" if any(_each(b) for b in _branches(below)) else ""
            yield from _section(f"{path}.{key}{free}", below, lower, definitions, shown, many=False)


def _own(name: str, definition: Schema, definitions: Mapping[str, Schema]) -> Mapping[str, Schema]:
    """Return the keys that are not shown elsewhere already."""
    elsewhere = {"Host": ("Ssh",), "Worker": ("Host",)}.get(name, ())
    known = {key for other in elsewhere for key in definitions[other]["properties"]}
    return {k: v for k, v in definition["properties"].items() if k not in known}


def _keys(keys: Mapping[str, Schema], variable: str, required: tuple[str, ...]) -> str:
    rows = [
        (
            code(key),
            cell(kind(field)),
            "required" if key in required else _default(field),
            _meaning(field),
        )
        for key, field in keys.items()
    ]
    some = next((key for key, field in keys.items() if not _table_of(field)), None)
    told = f"\n\nAs a variable: {code(variable + some.upper())}." if some else ""
    return table(("key", "value", "default", "meaning"), rows) + told


def kind(field: Schema) -> str:
    """Return in words what may stand as a value."""
    branches = [b for b in _branches(field) if b.get("type") != "null"]
    return " or ".join(dict.fromkeys(_kind(branch) for branch in branches))


def _kind(field: Schema) -> str:
    if "const" in field:
        return code(toml_value(field["const"]))
    if "enum" in field:
        return ", ".join(code(toml_value(value)) for value in field["enum"])
    if "$ref" in field:
        return "table"
    if field["type"] == "array":
        return f"list of {kind(field['items'])}"
    if field["type"] == "object":
        return "table of names and values"
    named = str(field["type"])
    return WORDS.get(named, named) + _range(field)


def _range(field: Schema) -> str:
    least, most = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    if least is None or most is None:
        return ""
    above = "exclusiveMinimum" in field
    if most >= WIDEST:
        return f", above {least}" if above else f", {least} or more"
    return f", above {least}, at most {most}" if above else f", {least} to {most}"


def _meaning(field: Schema) -> str:
    words = cell(field.get("description", "A table of its own, see below."))
    if not field.get("examples") or _default(field):
        return words
    return f"{words} Example: {code(toml_value(field['examples'][0]))}"


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None or isinstance(value, Mapping):
        return ""
    return code(toml_value(value))


def _branches(field: Schema) -> tuple[Schema, ...]:
    kinds = field.get("anyOf") or field.get("oneOf")
    return tuple(each for kind in kinds for each in _branches(kind)) if kinds else (field,)


def _table_of(field: Schema) -> str:
    """Return the name of the table that stands here, also in a list or as one of several kinds."""
    for branch in _branches(field):
        place = branch.get("items", branch) if branch.get("type") == "array" else branch
        if "$ref" in (place := _each(branch) or place):
            return str(place["$ref"]).rpartition("/")[2]
    return ""


def _each(field: Schema) -> Schema | None:
    """Return what stands at names of the reader's choice."""
    of_names = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    return next((each for each in of_names if isinstance(each, Mapping)), None)


def _is_optional(field: Schema) -> bool:
    return any(branch.get("type") == "null" for branch in _branches(field))
