"""Settings of few words: what a description calls a value is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from raycluster.spec import ClusterSpec


def parts(kind: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of."""
    yield kind
    for each in get_args(kind) if get_origin(kind) is not Literal else ():
        yield from parts(each)


def settings(model: type[BaseModel], seen: set[type]) -> Iterator[tuple[str, set[Any], str]]:
    """Yield the name of each setting of few words, these, and its description."""
    seen.add(model)
    for name, field in model.model_fields.items():
        kinds = list(parts(field.annotation))
        words = {w for k in kinds if get_origin(k) is Literal for w in get_args(k)}
        if words and all(isinstance(word, str) for word in words):
            yield f"{model.__name__}.{name}", words, field.description or ""
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
                yield from settings(kind, seen)


FOUND = list(settings(ClusterSpec, set()))
NAMES = {name.partition(".")[2] for name, _, _ in FOUND} | {"up", "shm_size"}


def test_some_are_found() -> None:
    assert {"Firewall.check", "Runtime.pull", "Model.routing"} <= {name for name, _, _ in FOUND}


@pytest.mark.parametrize(("name", "words", "text"), FOUND, ids=[name for name, _, _ in FOUND])
def test_words_of_a_description_are_values(name: str, words: set[Any], text: str) -> None:
    called = set(re.findall(r"`([^`]+)`", text)) - NAMES
    assert called <= words, name
    plain = {w for part in re.findall(r"\b(?:or|and) (\w+)(?=[.,;)]|$)", text) for w in [part]}
    assert not plain & {"all", "none", "public", "always"} - words, name
