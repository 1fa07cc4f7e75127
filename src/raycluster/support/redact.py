"""Takes secrets out of what is handed on: known values however they are written, and likely ones.

Pure. A value shorter than SHORTEST is not looked for: it would be found in every other word.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from urllib.parse import quote, quote_plus, unquote

from raycluster.core.templates import pattern

MASK = b"***"
SHORTEST = 6
_LINE = 16  # characters; shorter lines of a key's file are not secret by themselves

_NAME = re.compile(
    r"(?i)(?:token|secret|passw(?:or)?d|passphrase|credentials?|api_?key|access_?key|private_?key)$"
)
_BEGIN = rb"(?:\b|(?<=\\[nrt]))"  # of a word, in JSON too
_WHOLE = tuple(
    re.compile(expression.replace(rb"\b", _BEGIN, 1))
    for expression in (
        rb"\bhf_[A-Za-z0-9]{8,}",
        rb"\bsk-[A-Za-z0-9_-]{8,}",
        rb"\bgh[pousr]_[A-Za-z0-9]{16,}",
        rb"\bgithub_pat_\w{16,}",
        rb"\bglpat-[\w-]{16,}",
        rb"\bnvapi-[\w-]{16,}",
        rb"\bxox[abprs]-[\w-]{10,}",
        rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        rb"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}",
        rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?",
        rb"\bLS0tLS1CRUdJTi[\w+/=-]{20,}",  # the same in base64
    )
)
_AFTER = tuple(
    re.compile(expression)
    for expression in (
        rb"(?i)(bearer\)?[ +]+)(?!\*\*\*)[^\s\"',;]{4,}",
        rb"(?i)(authorization[\"']?\s*[:=]\s*[\"']?basic +)(?!\*\*\*)[^\s\"',;]{4,}",
        rb"(://[^/\s:@\"']{0,100}:)(?!\*\*\*@)[^/\s@\"']{1,200}(?=@)",
        rb"(?i)((?:token|secret|passw(?:or)?d|passphrase|credentials?|api_?key|access_?key"
        rb"|private_?key)\\*[\"']?\s{0,4}[=:]\s{0,4}\\*[\"']?)(?!\*\*\*|(?:env|file|cmd):)"
        rb"[^\s\"',;&}\\]{6,}",
    )
)

_BASES = {"octal": 8, "number": 10}
_ORDERS = ("utf-16-le", "utf-16-be")
_NO_HEX = bytes(sorted({*range(256)} - {*b"0123456789abcdef"}))
# What stands between signs where a line is broken, in JSON too.
_BREAK = re.compile(rb"(?:(?<![ \t])[ \t]++)?(?:[\r\n]|(?<!\\)(?P<escaped>\\++)[nrt])[\r\n \t]*+")
# The same where a secret has blanks itself: which of them were its own nobody can tell.
_BREAK_OR_BLANK = re.compile(rb"(?:[\r\n \t]|(?<!\\)(?P<escaped>\\++)[nrt])[\r\n \t]*+")
# What stands in the place of a sign, however deep it is nested.
_ESCAPE = re.compile(
    rb"\\++(?:u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\++u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|u(?P<four>[0-9a-fA-F]{4})|u\{(?P<braced>[0-9a-fA-F]{1,6})\}|U(?P<eight>[0-9a-fA-F]{8})"
    rb"|x(?P<byte>[0-9a-fA-F]{2})|(?P<octal>[0-3][0-7]{2})|)"
    rb"|%(?:25)*(?P<percent>[0-9a-fA-F]{2})"
    rb"|&(?:amp;)*(?:#0{0,9}(?P<number>[0-9]{1,7})|#[xX]0{0,9}(?P<hex>[0-9a-fA-F]{1,6})"
    rb"|(?P<name>quot|amp|lt|gt|apos));"
)

_IN_URL = re.compile(r"://[^/\s:@\"']{0,100}:([^/\s@\"']{1,200})@")


_SHOWN = re.compile(
    r"(?:RAY|RAYCLUSTER|VLLM|NCCL|GLOO|UCX|CUDA|NVIDIA|HIP|ROCR|OMP|MKL|TORCH|PYTORCH|TORCHINDUCTOR"
    r"|TRITON|FLASHINFER|HF|TRANSFORMERS|TOKENIZERS|PYTHON|LC|MALLOC|XDG)_\w+"
    r"|PATH|PYTHONPATH|LD_LIBRARY_PATH|LD_PRELOAD|HOME|USER|LANG|TZ|SHELL|TERM|PWD|HOSTNAME|TMPDIR"
    r"|[Nn][Oo]_[Pp][Rr][Oo][Xx][Yy]|VIRTUAL_ENV|UV_\w+"
)
"""Variables whose values are collected, unless their names say that they are secret."""


def shown_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return all names, and the values of those variables that are there to be looked at."""
    return {
        name: value if _SHOWN.fullmatch(name) and not is_secret_name(name) else MASK.decode()
        for name, value in variables.items()
    }


def secret_values(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield what is secret in an environment: by a variable's name, and passwords in URLs."""
    for name, value in variables.items():
        if is_secret_name(name):
            yield value
        for password in _IN_URL.findall(value):
            yield from (password, unquote(password))


def is_secret_name(name: str) -> bool:
    """Tell whether a variable of this name holds a secret, as far as its name says."""
    return bool(_NAME.search(name))


def forms(value: str) -> Iterator[bytes]:
    """Yield a secret as it is, and as files, URLs, configurations and encodings show it."""
    for text in _written(value):
        for code in ("utf-8", *_ORDERS):
            yield text.encode(code).replace(b"\0", b"")
    for raw in _bytes(value):
        yield from (raw.hex().encode(), raw.hex().upper().encode(), *_base64(raw))


def _written(value: str) -> Iterator[str]:
    """Yield a secret with what its place makes of its signs."""
    yield from (repr(value)[1:-1], ascii(value)[1:-1])
    yield from (value, html.escape(value), re.escape(value), pattern(value))
    yield from (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    for quoted in (quote(value, safe=""), quote(value), quote_plus(value)):
        yield quoted
        yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
    yield from (shlex.quote(value).strip("'"), value.replace("\\", ""))


def _bytes(value: str) -> Iterator[bytes]:
    """Yield the bytes that stand in hex or base64 for a secret."""
    yield value.encode()
    yield json.dumps(value)[1:-1].encode()
    yield from (value.encode(order) for order in _ORDERS)


def _base64(raw: bytes) -> Iterator[bytes]:
    """Yield what stands in base64 whatever is before and behind it, in both alphabets."""
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + raw)[first:last]


def _in_hex(value: str) -> Iterator[re.Pattern[bytes]]:
    """Yield what finds a secret's bytes in hex with signs between them, in capitals or not."""
    for raw in dict.fromkeys(_bytes(value)):
        pairs = (f"{byte:02x}".encode() for byte in raw)
        yield re.compile(rb"(?i)" + rb"(?:[^0-9a-z]|\\[nrt]|0x|\\x){0,80}?".join(pairs))


class _Undone:
    """Data with tokens replaced by what they stand for; it knows where each byte came from."""

    def __init__(self, source: bytes, tokens: re.Pattern[bytes]) -> None:
        parts: list[bytes] = []
        self._at: list[int] = []  # where a part begins in `data`
        self._from: list[tuple[int, int]] = []  # where it begins and ends in the source
        begin = size = 0
        for token in tokens.finditer(source):
            for part, where in (
                (source[begin : token.start()], (begin, token.start())),
                (_meant(token), token.span()),
            ):
                if part:
                    parts.append(part)
                    self._at.append(size)
                    self._from.append(where)
                    size += len(part)
            begin = token.end()
        parts.append(source[begin:])
        self._at.append(size)
        self._from.append((begin, len(source)))
        self.data = b"".join(parts)

    def source(self, begin: int, end: int) -> tuple[int, int]:
        """Return where in the source a piece of the data came from."""
        return self._place(begin, last=False), self._place(end - 1, last=True)

    def _place(self, at: int, *, last: bool) -> int:
        number = bisect_right(self._at, at) - 1
        begin, end = self._from[number]
        after = self._at[number + 1] if number + 1 < len(self._at) else len(self.data)
        if after - self._at[number] == end - begin:  # it was plain: as long as it is here
            return begin + at - self._at[number] + last
        return end if last else begin


def _plain(data: bytes, breaks: re.Pattern[bytes]) -> tuple[_Undone, _Undone]:
    """Return the data in one line, and that without what encodings made of its signs."""
    whole = _Undone(data, breaks)
    return whole, _Undone(whole.data, _ESCAPE)


def _meant(token: re.Match[bytes]) -> bytes:
    """Return what a token stands for; of line ends, blanks and backslashes nothing."""
    kind = token.lastgroup
    if kind is None:
        return b""
    said = token[kind].decode()
    if kind == "escaped":  # 1, 2, 4... backslashes are a line end's; else more are before it
        return b"" if len(said).bit_count() == 1 else b"\\"
    if kind == "name":
        meant = html.unescape(f"&{said};")
    elif kind == "low":
        meant = bytes.fromhex(token["high"].decode() + said).decode("utf-16-be")
    else:
        number = int(said, _BASES.get(kind, 16))
        if kind in ("byte", "percent", "octal") and number not in b"\\\r\n \t":
            return bytes((number,))
        meant = chr(number) if number <= sys.maxunicode else ""
    return meant.strip("\\\r\n \t").encode("utf-8", "surrogatepass")


def _spans(data: bytes, forms: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    for form in forms:
        at = data.find(form)
        while at >= 0:
            yield at, at + len(form)
            at = data.find(form, at + len(form))


def _ends(data: bytes, forms: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where data begins or ends in the middle of one: it may have been cut there."""
    data = data.rstrip(b"\r\n")
    head, tail = data[:SHORTEST], data[-SHORTEST:]
    for form in forms:
        sizes = range(min(len(form), len(data)) - 1, SHORTEST - 1, -1)
        if head in form and (size := next((n for n in sizes if data.startswith(form[-n:])), 0)):
            yield 0, size
        if tail in form and (size := next((n for n in sizes if data.endswith(form[:n])), 0)):
            yield len(data) - size, len(data)


class Redactor:
    """Masks secrets; `count` is how many places were masked."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in (value, value.strip(), *_lines(value))}
        self._values = [
            part.encode("utf-8", "replace").decode() for part in parts if len(part) >= SHORTEST
        ]
        blank = any(" " in value or "\t" in value for value in self._values)
        self._breaks = _BREAK_OR_BLANK if blank else _BREAK
        known = {form for value in self._values for form in forms(value)}
        plain = {_plain(form, self._breaks)[-1].data for form in known}
        self._known = sorted((f for f in known if len(f) >= SHORTEST), key=len, reverse=True)
        self._plain = sorted((f for f in plain if len(f) >= SHORTEST), key=len, reverse=True)
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        """Return the data without secrets and zero bytes, so that ASCII in UTF-16 is ASCII."""
        data = data.replace(b"\0", b"")
        whole, plain = _plain(data, self._breaks)
        found = chain(_spans(plain.data, self._plain), _ends(plain.data, self._plain))
        data = self._masked(data, (whole.source(*plain.source(*span)) for span in found))
        for form in self._known:
            if form in data:
                self.count += data.count(form)
                data = data.replace(form, MASK)
        data = self._masked(data, _ends(data, self._known))
        data = self._hex(data)
        for expression in _WHOLE:
            data = self._sub(expression, MASK, data)
        for expression in _AFTER:
            data = self._sub(expression, rb"\g<1>" + MASK, data)
        return data

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        return self(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def _masked(self, data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
        parts, at = [], 0
        for begin, end in sorted(spans):
            if begin >= at:
                parts += [data[at:begin], MASK]
                self.count += 1
            at = max(at, end)
        return b"".join((*parts, data[at:]))

    def _hex(self, data: bytes) -> bytes:
        """Mask secrets in hex with signs between the bytes, such as 68:75 or 0x68, 0x75."""
        digits = data.lower()
        flat = [each.translate(None, _NO_HEX) for each in (digits, digits.replace(b"0x", b""))]
        for value in self._values:
            raw = [each.hex().encode() for each in _bytes(value)]
            if any(each in text for each in raw for text in flat):
                for expression in _in_hex(value):
                    data = self._sub(expression, MASK, data)
        return data

    def _sub(self, expression: re.Pattern[bytes], by: bytes, data: bytes) -> bytes:
        data, times = expression.subn(by, data)
        self.count += times
        return data


def _lines(value: str) -> list[str]:
    lines = value.splitlines()
    return [line for line in lines if len(line) >= _LINE] if len(lines) > 1 else []
