"""The line that an error names holds what the error is about."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.spec.lines import Location, lines_of, nearest_line

HARD = r'''# a "comment" with = signs [and] brackets
a = 1
"b c".d = """x
[no]
q = 1 ""\"""" # [[no]]
[t.u]
x = [ 1, # c ]
  { y = 2, "z.w" = [[3],
  [4]] },
]
date = 1979-05-27 07:32:00.5
float = -1.5e3
[[l]]
k=1
[l.sub]
m = \'\'\'a
k = \'\'\'\'\'
[[l]]
[[l.n]]
v={}
[[l.n]]
w = {a.b=1}
'''.replace("\\'", "'")

EXPECTED = [
    (("a",), 2), (("b c",), 3), (("b c", "d"), 3), (("t", "u"), 6), (("t", "u", "x"), 7),
    (("t", "u", "x", 0), 7), (("t", "u", "x", 1, "y"), 8), (("t", "u", "x", 1, "z.w", 1), 9),
    (("t", "u", "date"), 11), (("t", "u", "float"), 12), (("l", 0), 13), (("l", 0, "sub", "m"), 16),
    (("l", 1), 18), (("l", 1, "n", 0, "v"), 20), (("l", 1, "n", 1), 21),
    (("l", 1, "n", 1, "w", "a", "b"), 22),
]  # fmt: skip


def places(value: object, at: Location = ()) -> Iterator[Location]:
    if at:
        yield at
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, inner in entries:
        yield from places(inner, (*at, key))


@pytest.mark.parametrize(("location", "line"), EXPECTED)
def test_the_line_of_a_place(location: Location, line: int) -> None:
    assert lines_of(HARD)[location] == line


def test_exactly_the_places_of_the_document_have_lines() -> None:
    assert set(lines_of(HARD)) == set(places(tomllib.loads(HARD)))


def test_what_is_missing_has_its_parents_line() -> None:
    lines = lines_of(HARD)
    assert nearest_line(lines, ("l", 1, "missing", 3)) == 18
    assert nearest_line(lines, ("missing",)) is None


BARE = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
QUOTED = st.from_regex(r"'[^'\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,8}'", fullmatch=True)
SCALARS = st.sampled_from(
    ["1", "-0.5e-3", "true", "nan", '"x # y"', "'[a]'", '"""a\n[b]\nc = """', "'''\n#'''",
     "1979-05-27 07:32:00", '"\\"="', '""', "''", "1979-05-27"]
)  # fmt: skip
GAPS = st.sampled_from(["", " ", "\n", " # [c] = '\n", "\n\n"])


def inline(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.lists(st.tuples(GAPS, values), max_size=3).map(
        lambda items: "[" + ",".join(gap + value for gap, value in items) + "\n]"
    )
    tables = st.dictionaries(BARE, values.filter(lambda v: "\n" not in v), max_size=3).map(
        lambda table: "{ " + ", ".join(f"{k} = {v}" for k, v in table.items()) + " }"
    )
    return lists | tables


VALUES = st.recursive(SCALARS, inline, max_leaves=6)
LINES = st.one_of(
    st.builds("{} = {}".format, BARE | QUOTED, VALUES),
    st.builds("{} . {}={} # [x]".format, BARE, BARE, VALUES),
    st.builds("[{}]".format, BARE | QUOTED),
    st.builds("[[ {}]] # y".format, BARE | QUOTED),
    st.builds("[{}.{}]".format, BARE, QUOTED),
    st.sampled_from(["", "# a = 1", "  # [z]"]),
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Join lines as long as the whole stays valid TOML."""
    text = ""
    for line in draw(st.lists(LINES, max_size=8)):
        try:
            tomllib.loads(f"{text}{line}\n")
        except tomllib.TOMLDecodeError:
            continue
        text += f"{line}\n"
    return text


@given(documents())
def test_a_line_never_lies(text: str) -> None:
    document, lines, rows = tomllib.loads(text), lines_of(text), text.split("\n")
    assert set(lines) == set(places(document))
    for location, line in lines.items():
        if isinstance(location[-1], str):
            assert location[-1] in rows[line - 1]
