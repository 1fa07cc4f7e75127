"""The JSON Schema that editors get."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from raycluster.commands.schema import schema_json

EXAMPLE = Path(__file__).parents[3] / "cluster.toml.example"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(schema_json())
    return loaded


def test_it_is_a_schema_with_a_name(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema)[:3] == ["$schema", "$id", "title"]


@pytest.mark.parametrize("comments", ["", "# "], ids=["as it is", "uncommented"])
def test_the_example_fits_it(schema: dict[str, Any], comments: str) -> None:
    text = EXAMPLE.read_text("utf-8")
    if comments:
        text = re.sub(r"(?m)^# ", "", text)
    jsonschema.Draft202012Validator(schema).validate(tomllib.loads(text))


@pytest.mark.parametrize(
    "head", [{"host": "h", "prot": 1}, {"host": "h", "port": 0}, {"host": "h", "gpus": "al"}]
)
def test_wrong_values_do_not_fit_it(schema: dict[str, Any], head: dict[str, object]) -> None:
    document = {"cluster": {"name": "q"}, "head": head}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document)
