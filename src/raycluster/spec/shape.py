"""Walking the models' types: which keys a place in a spec may have, and what they hold; pure."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from raycluster.spec.lines import Location


def keys(kind: object) -> dict[str, object]:
    """Return the keys, with their types, of the model that `kind` is or may be."""
    found: dict[str, object] = {}
    for plain in branches(kind):
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            for name, field in plain.model_fields.items():
                # pydantic moves what stands in Annotated from the annotation to the metadata
                whole = (field.annotation, *field.metadata)
                found[field.alias or name] = Annotated[whole] if field.metadata else whole[0]
    return found


def values(kind: object) -> object | None:
    """Return the type of a mapping's values; None where free keys are not allowed."""
    return next((get_args(k)[1] for k in branches(kind) if get_origin(k) is dict), None)


def items(kind: object) -> object | None:
    """Return the type of a list's items; None for what is not a list."""
    return next((get_args(k)[0] for k in branches(kind) if get_origin(k) is tuple), None)


def is_table_or_list(kind: object) -> bool:
    """Tell whether no single value can stand here."""
    return all(
        keys(k) or get_origin(k) in {dict, tuple} or k is types.NoneType for k in branches(kind)
    )


def at(kind: object, location: Location) -> object | None:
    """Return the type at a place below `kind`; None for a place that no spec has."""
    for part in location:
        kind = items(kind) if isinstance(part, int) else keys(kind).get(part) or values(kind)
    return kind


def branches(kind: object) -> Iterator[Any]:
    """Yield the members of a union, without annotations."""
    if get_origin(kind) is Annotated:
        yield from branches(get_args(kind)[0])
    elif get_origin(kind) in {Union, types.UnionType}:
        for part in get_args(kind):
            yield from branches(part)
    else:
        yield kind
