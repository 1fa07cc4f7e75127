"""Where valid TOML sets what: the line of every key, table and list item; pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping

Location = tuple[int | str, ...]
Token = tuple[str, str, int]

_TOKENS = re.compile(
    r"""
    (?P<string>"{3}(?:[^\\]|\\.)*?"{3,5} | '{3}.*?'{3,5}
             | "(?:[^"\\\n]|\\.)*" | '[^'\n]*')
  | (?P<comment>\#[^\n]*)
  | (?P<newline>\n)
  | (?P<mark>[\[\]{}=,.])
  | (?P<space>[^\S\n]+)
  | (?P<bare>[^\s\[\]{}=,.\#"']+)
    """,
    re.VERBOSE | re.DOTALL,
)


def lines_of(text: str) -> dict[Location, int]:
    """Return the line (from 1) where valid TOML first names each place in it."""
    return _Scanner(text).scan()


def nearest_line(lines: Mapping[Location, int], location: Location) -> int | None:
    """Return the line of `location`, or of its nearest parent that has one."""
    for length in range(len(location), 0, -1):
        if line := lines.get(location[:length]):
            return line
    return None


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in _TOKENS.finditer(text):
        kind, token = match.lastgroup or "", match.group()
        if kind not in {"comment", "space"}:
            yield kind, token, line
        line += token.count("\n")
    yield "end", "", line


class _Scanner:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._lines: dict[Location, int] = {}
        self._lists: dict[Location, int] = {}

    def scan(self) -> dict[Location, int]:
        table: Location = ()
        while self._kind() != "end":
            if self._skip("\n"):
                continue
            if self._skip("["):
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _kind(self) -> str:
        return self._tokens[self._next][0]

    def _take(self) -> Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _skip(self, mark: str) -> bool:
        kind, token, _ = self._tokens[self._next]
        found = token == mark and kind in {"mark", "newline"}
        if found:
            self._take()
        return found

    def _note(self, location: Location, line: int) -> None:
        self._lines.setdefault(location, line)

    def _key(self) -> tuple[list[str], int]:
        names = []
        while True:
            kind, token, line = self._take()
            names.append(_unquoted(token) if kind == "string" else token)
            if not self._skip("."):
                return names, line

    def _header(self) -> Location:
        """Take a header's rest; each list of tables on its way means that list's last item."""
        is_list = self._skip("[")
        names, line = self._key()
        while self._skip("]"):
            pass
        path: Location = ()
        for position, name in enumerate(names, start=1):
            path = (*path, name)
            self._note(path, line)
            if is_list and position == len(names):
                self._lists[path] = self._lists.get(path, -1) + 1
            if path in self._lists:
                path = (*path, self._lists[path])
                self._note(path, line)
        return path

    def _pair(self, table: Location) -> None:
        names, line = self._key()
        for length in range(1, len(names) + 1):
            self._note((*table, *names[:length]), line)
        self._skip("=")
        self._value((*table, *names))

    def _value(self, location: Location) -> None:
        if self._skip("["):
            self._items(location)
        elif self._skip("{"):
            while not self._skip("}") and self._kind() != "end":
                if not (self._skip("\n") or self._skip(",")):
                    self._pair(location)
        else:
            while self._kind() in {"bare", "string"} or self._tokens[self._next][1] == ".":
                self._take()

    def _items(self, location: Location) -> None:
        index = 0
        while not self._skip("]") and self._kind() != "end":
            if self._skip("\n"):
                continue
            if self._skip(","):
                index += 1
                continue
            self._note((*location, index), self._tokens[self._next][2])
            self._value((*location, index))


def _unquoted(token: str) -> str:
    return str(tomllib.loads(f"key = {token}")["key"])
