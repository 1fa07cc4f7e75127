"""Reads JSON that somebody else wrote: what hosts store or answer, and files that lie about.

It is data: of limited size and depth, of the shape that is expected, and where it is not, that is
one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from raycluster.core.accelerators.values import clean
from raycluster.core.errors import NewerRecordError, RecordError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
MOST = 1 << 20
"""Bytes of one record."""
_LARGE = re.compile(rb"e\+?[0-9]"), re.compile(rb"E\+?[0-9]"), re.compile(rb"[0-9]{300}")


def decode(
    content: bytes | str,
    kind: type[T],
    *,
    what: str,
    where: str = "",
    schema: int | None = None,
    most: int = MOST,
) -> T:
    """Return the JSON as a `kind`: a dataclass, a model, or a type such as `dict[str, int]`.

    Keys that a dataclass does not have are left out, and numbers that are infinite or not of the
    exact type refused. With `schema`, the JSON is an object with this number under `schema`.
    `what` names it to a person. Raises RecordError, NewerRecordError where the number is higher,
    and nothing else.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    try:
        encoded = content.encode() if isinstance(content, str) else content
        if len(encoded) > most:
            raise ValueError(f"longer than {most} bytes")
        plain = from_json(encoded, allow_inf_nan=False)
        if any(each.search(encoded) for each in _LARGE):
            json.dumps(plain, allow_nan=False)  # refuses 1e999, which is read as infinite
        if schema is not None:
            _check_schema(plain, schema, what, where)
        value: T = _adapter(cast("Hashable", kind)).validate_json(encoded, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise unread(what, f"{place}: {first['msg']}" if place else first["msg"], where) from None
    except ValueError as error:
        raise unread(what, str(error), where) from None
    return value


def unread(what: str, why: str, where: str = "") -> RecordError:
    """Return the error for a record that cannot be read."""
    return RecordError(f"{what} cannot be read: {clean(why)}", where=where)


def _check_schema(plain: object, schema: int, what: str, where: str) -> None:
    number = plain.get("schema") if isinstance(plain, dict) else None
    if type(number) is not int or number < 1:
        raise ValueError("it has no schema number")
    if number > schema:
        raise NewerRecordError(
            f"{what} has schema {clean(str(number), 20)}, but this version of raycluster reads up "
            f"to {schema}",
            where=where,
            hint="use the version of raycluster that wrote it, or a newer one",
        )


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cast("Any", kind))
