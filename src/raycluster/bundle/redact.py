"""Takes secrets out of what is handed on: known values however they are written, and likely ones.

Pure. A value shorter than SHORTEST is not looked for: it would be found in every other word.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote

from raycluster.templates import pattern

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
    )
)
_AFTER = tuple(
    re.compile(expression)
    for expression in (
        rb"(?i)(bearer\)?[ +]+)(?!\*\*\*)[^\s\"',;]{4,}",
        rb"(?i)(authorization[\"']?\s*[:=]\s*[\"']?basic +)(?!\*\*\*)[^\s\"',;]{4,}",
        rb"(://[^/\s:@\"']{0,100}:)(?!\*\*\*@)[^/\s@\"']{1,200}(?=@)",
        rb"(?i)((?:token|secret|passw(?:or)?d|passphrase|credentials?|api_?key|access_?key"
        rb"|private_?key)\\?[\"']?\s{0,4}[=:]\s{0,4}\\?[\"']?)(?!\*\*\*|(?:env|file|cmd):)"
        rb"[^\s\"',;&}\\]{6,}",
    )
)


_IN_URL = re.compile(r"://[^/\s:@\"']{0,100}:([^/\s@\"']{1,200})@")


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
    raw = value.encode()
    yield raw
    yield json.dumps(value)[1:-1].encode()
    yield json.dumps(value, ensure_ascii=False)[1:-1].encode()
    for quoted in (quote(value, safe=""), quote(value), quote_plus(value)):
        yield quoted.encode()
        yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), quoted).encode()
    yield re.escape(value).encode()
    yield html.escape(value).encode()
    yield str(pattern(value)).encode()
    yield raw.hex().encode()
    yield from _base64(raw)


def _base64(raw: bytes) -> Iterator[bytes]:
    """Yield what stands in base64 whatever is before and behind it, in both alphabets."""
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + raw)[first:last]


class Redactor:
    """Masks secrets; `count` is how many places were masked."""

    def __init__(self, values: Iterable[str]) -> None:
        values = {part for value in values for part in (value, value.strip(), *_lines(value))}
        known = {form for value in values if len(value) >= SHORTEST for form in forms(value)}
        self._known = sorted((f for f in known if len(f) >= SHORTEST), key=len, reverse=True)
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        """Return the data without secrets."""
        for form in self._known:
            if form in data:
                self.count += data.count(form)
                data = data.replace(form, MASK)
        for expression in _WHOLE:
            data = self._sub(expression, MASK, data)
        for expression in _AFTER:
            data = self._sub(expression, rb"\g<1>" + MASK, data)
        return data

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        return self(text.encode("utf-8", "replace")).decode()

    def _sub(self, expression: re.Pattern[bytes], by: bytes, data: bytes) -> bytes:
        data, times = expression.subn(by, data)
        self.count += times
        return data


def _lines(value: str) -> list[str]:
    lines = value.splitlines()
    return [line for line in lines if len(line) >= _LINE] if len(lines) > 1 else []
