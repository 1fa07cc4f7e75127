"""The example is made from the models, mentions all of them and is valid in every state."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from raycluster.commands.init import init_text
from raycluster.spec import ClusterSpec, read_spec, shape
from raycluster.spec.models import Host, Worker
from tests.unit.spec.conftest import Read

EXAMPLE = Path(__file__).parents[3] / "cluster.toml.example"


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^# ", "", text)


def test_the_committed_example_is_the_generated_one() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert text == init_text([]), (
        "write it with: raycluster init --force --name my-cluster -o cluster.toml.example"
    )


def test_every_line_is_words_a_setting_or_an_example() -> None:
    for line in EXAMPLE.read_text("utf-8").splitlines():
        assert re.match(r"$|## \S|(# )?(\[\[?[a-z_.]+\]\]?$|[A-Za-z_]+ = )", line), line


def test_the_example_is_valid_as_it_is() -> None:
    spec = read_spec(EXAMPLE, {})
    assert [h.role for h in spec.hosts] == ["head", "worker"]


def test_the_example_is_valid_with_every_line_uncommented(read: Read) -> None:
    spec = read(uncommented(EXAMPLE.read_text("utf-8")))
    assert spec.workers[0].name
    assert spec.head.runtime.image


@pytest.mark.parametrize("hosts", [[], ["local"], ["alias"], ["root@h:1", "h:2", "[::1]:22"]])
def test_what_init_writes_is_valid_either_way(read: Read, hosts: list[str]) -> None:
    text = init_text(hosts)
    assert len(read(text).hosts) == len(hosts or "ab")
    read(uncommented(text))


def mentions(kind: object, at: str = "") -> list[tuple[str, str]]:
    """Return each setting's path and description, without what a Worker shares with a Host."""
    found = []
    for plain in shape.branches(kind):
        if not (isinstance(plain, type) and issubclass(plain, BaseModel)):
            continue
        for name, field in plain.model_fields.items():
            key = f"{at}.{field.alias or name}".removeprefix(".")
            if plain is Worker and name in Host.model_fields:
                continue
            found.append((key, field.description or ""))
            found += mentions(shape.items(field.annotation) or field.annotation, key)
    return found


MENTIONS = mentions(ClusterSpec)


@pytest.mark.parametrize(("path", "description"), MENTIONS, ids=[path for path, _ in MENTIONS])
def test_every_setting_is_in_the_example_in_the_models_words(path: str, description: str) -> None:
    text = EXAMPLE.read_text("utf-8")
    node: object = tomllib.loads(uncommented(text))
    for key in path.split("."):
        node = node[0] if isinstance(node, list) else node
        assert isinstance(node, dict)
        assert key in node, f"give the field {path} an example: Field(examples=[...])"
        node = node[key]
    in_one_line = any(path.startswith(f"{parent}.") for parent in INLINE)
    assert description
    assert in_one_line or f"## {description}\n" in text


INLINE = [
    path
    for path, _ in MENTIONS
    if re.search(rf"(?m)^(# )?{path.rpartition('.')[2]} = \{{", EXAMPLE.read_text("utf-8"))
]
