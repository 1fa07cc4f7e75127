"""What may reach a terminal of the words of others."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.core.printable import LONGEST, PrintableStream, printable, printable_log

SOURCE = Path(__file__).parents[3] / "src" / "raycluster"
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
# Signs as hosts might send them: most of them such as do harm.
UNSAFE = "\x00\x07\x08\r\x0b\x1b\x7f\x85\x9b\x9d\xad\u061c\u200b\u200d\u2028\u2029\u202a\u202e"
SIGNS = st.text(st.one_of(st.sampled_from(f"{UNSAFE}\u2066\u2069\ufeff\ud800[]m;\n\t"),
                          st.characters(exclude_categories=())))  # fmt: skip


def commands_a_terminal(sign: str) -> bool:
    """Tell by its category whether a sign is no letter, no mark and no space."""
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in "\t\n"


def test_every_sign_that_commands_a_terminal_is_shown_as_its_escape() -> None:
    kept = []
    for number in range(sys.maxunicode + 1):
        sign = chr(number)
        shown = printable(sign)
        if commands_a_terminal(sign):
            assert re.fullmatch(r"\\(?:r|x..|u....|U........)", shown), hex(number)
        elif shown != sign:
            kept.append(number)
    assert all(unicodedata.category(chr(number)) == "Cn" for number in kept)


@given(SIGNS)
def test_nothing_else_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(map(commands_a_terminal, shown))
    assert printable(shown, None) == shown
    if not any(map(commands_a_terminal, text)):
        assert shown == text


@given(SIGNS)
def test_of_a_log_colours_are_left_and_ended(text: str) -> None:
    shown = printable_log(text)
    assert not any(map(commands_a_terminal, COLOUR.sub("", shown)))
    colours = COLOUR.findall(shown)
    assert not colours or shown.endswith("\x1b[0m")


@given(st.recursive(SIGNS, lambda x: st.lists(x) | st.dictionaries(SIGNS, x)))
def test_json_stays_json(value: object) -> None:
    text = json.dumps(value, indent=2)
    assert printable(text, None) == text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\r\nb", "a\nb"),
        ("100%\rdone", "100%\\rdone"),
        ("\x1b]52;c;QQ==\x07", "\\x1b]52;c;QQ==\\x07"),
        ("rtl \u202e", "rtl \\u202e"),
        ("x" * LONGEST + "yz\nend", "x" * LONGEST + "... and 2 more characters\nend"),
    ],
)
def test_what_people_see(said: str, shown: str) -> None:
    assert printable(said) == shown


def test_a_stream_for_programs_has_lines_of_any_length() -> None:
    text = "x" * (2 * LONGEST)
    for longest, length in ((None, len(text)), (LONGEST, len(printable(text)))):
        raw = io.StringIO()
        stream = PrintableStream(raw, longest)
        print(text, "\x1b", file=stream)
        assert raw.getvalue().endswith(" \\x1b\n")
        assert len(raw.getvalue()) == length + len(" \\x1b\n")


# What writes to this machine's terminal past the guard.
RAW = {
    "commands/exec.py": {"stream.buffer"},  # the person's own command
    "commands/logs.py": {"sys.stdout.buffer"},  # lines that `View` has made
    "core/console.py": {"Console"},  # the guard itself
}
ON_HOSTS = (
    *("serve/", "support/on_node.py", "logs/on_node.py", "bench/remote.py"),
    "apply/engine_probe/on_node.py",
)
PAST = re.compile(
    r"sys\.__std(out|err)__|(sys\.std(out|err)|stream)\.buffer|\w+\.(from_markup|from_ansi)"
)


def test_nothing_writes_past_the_guard() -> None:
    found = {p.relative_to(SOURCE).as_posix(): past_the_guard(p) for p in SOURCE.rglob("*.py")}
    here = {name: past for name, past in found.items() if past and not name.startswith(ON_HOSTS)}
    assert here == RAW


def past_the_guard(path: Path) -> set[str]:
    """Return what a module uses to write as it likes, but for what it names in types alone."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    found = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            found |= {alias.name for alias in node.names} & {"Console"}
        if isinstance(node, ast.Attribute) and PAST.fullmatch(whole := ast.unparse(node)):
            found.add(whole)
        nodes += ast.iter_child_nodes(node)
    return found
