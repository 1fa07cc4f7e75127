"""The package's own files: templates, rendered and escaped for each syntax, and code for hosts."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


class Escaped(str):
    """Text that may stand in a rendered file as it is."""

    __slots__ = ()


def number(value: int) -> Escaped:
    """Return a whole number."""
    return Escaped(int(value))


def word(value: str) -> Escaped:
    """Return a value of letters, digits and `. _ : / -`, which no syntax takes for its own.

    Raises ValueError for any other.
    """
    if not re.fullmatch(r"[A-Za-z0-9._:/\[\]-]+", value):
        raise ValueError("not a plain word")
    return Escaped(value)


def line(value: str) -> Escaped:
    """Return a line of Markdown of our own, also for a table. Raises ValueError for several."""
    if re.search(r"[\x00-\x1f]", value):
        raise ValueError("more than a line")
    return Escaped(value.replace("|", "\\|"))


def shell(value: str) -> Escaped:
    """Return one word for sh."""
    return Escaped(shlex.quote(value))


def pattern(value: str) -> Escaped:
    """Return a regular expression (PCRE, in quotes of nginx) for exactly this text."""
    plain = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    signs = (chr(byte) for byte in value.encode())
    return Escaped("".join(s if s in plain else f"\\\\x{ord(s):02x}" for s in signs))


def quoted(value: object) -> Escaped:
    """Return JSON as a word of nginx, in which nothing stands for something else.

    Raises ValueError for what nginx would read in another way.
    """
    plain = json.dumps(value, separators=(",", ":"))
    if re.search(r"['\\$]", plain):
        raise ValueError("quotes, backslashes and dollar signs cannot stand here")
    return Escaped(f"'{plain}'")


def names(values: Iterable[str]) -> Escaped:
    """Return names of models with commas, in nginx's quotes. Raises ValueError for others."""
    told = ",".join(values)
    if not re.fullmatch(r"[A-Za-z0-9._:/@+,-]+", told):
        raise ValueError("not names of models")
    return Escaped(f'"{told}"')


def limits(values: Mapping[str, object]) -> Escaped:
    """Return `name=value` with commas, in nginx's quotes. Raises ValueError for others."""
    told = ",".join(f"{name}={value}" for name, value in values.items())
    if not re.fullmatch(r"[a-z0-9_=,]+", told):
        raise ValueError("not limits")
    return Escaped(f'"{told}"')


def since(second: int) -> Escaped:
    """Return a pattern (PCRE, in quotes of nginx) for seconds since 1970, from this one on."""
    digits = f"{max(0, second):010d}"
    size = len(digits)
    later = [
        f"{digits[:at]}[{int(digit) + 1}-9][0-9]{{{size - at - 1}}}"
        for at, digit in enumerate(digits)
        if digit != "9"
    ]
    return Escaped("|".join([digits, *later, f"[0-9]{{{size + 1},}}"]))


def as_json(value: object) -> Escaped:
    """Return JSON, which is YAML as well."""
    return Escaped(json.dumps(value))


def text(value: object) -> Escaped:
    """Return text for HTML, in an element or a quoted attribute; half characters are replaced."""
    return Escaped(html.escape(str(value).encode("utf-8", "replace").decode()))


def data(value: object) -> Escaped:
    """Return JSON for a script element of HTML. Raises ValueError for NaN and infinities."""
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Escaped(plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def code(script: str) -> Escaped:
    """Return a program of ours or of a package for a script element; ValueError if it ends it."""
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("the script would end its own element")
    return Escaped(script)


def render(name: str, **values: object) -> bytes:
    """Return the template `name`, filled in. Raises TypeError for a value that is not escaped."""
    return _environment().get_template(name).render(values).encode()


def plain(directory: str) -> dict[str, bytes]:
    """Return the files of a folder of templates as they are, by name: nothing is filled in."""
    return {entry.name: entry.read_bytes() for entry in (folder() / directory).iterdir()}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(lambda name: (folder() / name).read_text("utf-8")),
        undefined=StrictUndefined,
        finalize=_only_escaped,
        autoescape=False,  # noqa: S701  # for HTML; here `finalize` lets nothing else through
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": number, "word": word, "pattern": pattern, "json": as_json}
    made.filters |= {"line": line, "shell": shell, "quoted": quoted, "names": names, "since": since}
    made.filters |= {"limits": limits}
    made.filters |= {"text": text, "data": data, "code": code}
    return made


def _only_escaped(value: object) -> object:
    if not isinstance(value, Escaped):
        raise TypeError("a template shows a value that is not escaped")
    return value


def folder() -> Traversable:
    """Return the folder of templates: in the installed package, or in the checkout."""
    packaged = resources.files("raycluster") / "templates"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "templates"


def python_files(part: str) -> Iterator[tuple[str, bytes]]:
    """Yield the paths, from `raycluster/` on, and contents of a folder's modules, or of one."""
    yield from _walk(resources.files("raycluster") / part, f"raycluster/{part}")


def _walk(place: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for entry in place.iterdir():
            yield from _walk(entry, f"{path}/{entry.name}")
    elif path.endswith((".py", ".lua")):
        yield path, place.read_bytes()
