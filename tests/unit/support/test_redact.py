"""What is masked, and what is left."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import string
from collections.abc import Callable
from functools import partial
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raycluster.core.templates import pattern
from raycluster.support.redact import SHORTEST, Redactor, is_secret_name

VALUES = ("hunter2-hunter2", 'a"b\\c d/e+f&<é>', "plain0123456789")


@pytest.mark.parametrize("value", VALUES)
def test_a_known_value_is_found_in_every_form(value: str) -> None:
    raw = value.encode()
    for written in (
        value,
        json.dumps({"key": value}),
        json.dumps({"key": value}, ensure_ascii=False),
        f"http://host/?key={quote(value, safe='')}&x={quote_plus(value)}",
        f"path={quote(value)}",
        html.escape(value),
        re.escape(value),
        f'"~^(?i:bearer) +{pattern(value)}\\z" "alice";',
        raw.hex(),
    ):
        masked = Redactor([value])(written.encode())
        assert b"***" in masked
        for form in (raw, quote(value, safe="").encode(), json.dumps(value)[1:-1].encode()):
            assert form not in masked


def each(value: str, form: str) -> str:
    """Return the value with each byte of UTF-8 in a form such as `%{:02X}`."""
    return "".join(form.format(byte) for byte in value.encode())


def each_unit(value: str, form: str) -> str:
    """Return the value with each unit of UTF-16 in a form, as JSON and JavaScript have it."""
    raw = value.encode("utf-16-be")
    return "".join(form.format(int.from_bytes(raw[at : at + 2])) for at in range(0, len(raw), 2))


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": json.dumps,
    "JSON with all signs": partial(json.dumps, ensure_ascii=False),
    "repr": repr,
    "ascii": ascii,
    "bytes": lambda value: repr(value.encode()),
    "URL": quote,
    "URL, all quoted": partial(quote, safe=""),
    "URL twice": lambda value: quote(quote(value)),
    "form": quote_plus,
    "percent": lambda value: each(value, "%{:02X}"),
    "percent in small letters": lambda value: each(value, "%{:02x}"),
    r"\x": lambda value: each(value, r"\x{:02x}"),
    r"\X in capitals": lambda value: each(value, r"\x{:02X}"),
    r"\u": lambda value: each_unit(value, r"\u{:04x}"),
    r"\U": lambda value: "".join(rf"\U{ord(sign):08x}" for sign in value),
    r"\u{}": lambda value: "".join(rf"\u{{{ord(sign):x}}}" for sign in value),
    "octal": lambda value: each(value, r"\{:03o}") if value.isascii() else value,
    "HTML": html.escape,
    "HTML numbers": lambda value: "".join(f"&#{ord(sign)};" for sign in value),
    "HTML hex": lambda value: "".join(f"&#x{ord(sign):X};" for sign in value),
    "HTML in HTML": lambda value: html.escape(html.escape(value)),
    "regular expression": re.escape,
    "nginx": lambda value: str(pattern(value)),
    "shell": shlex.quote,
    "hex": lambda value: value.encode().hex(),
    "hex in capitals": lambda value: value.encode().hex().upper(),
    "hex of UTF-16": lambda value: value.encode("utf-16-le").hex(),
}
APART: dict[str, Callable[[str], str]] = {
    "hex with colons": lambda value: value.encode().hex(":"),
    "hex with spaces": lambda value: value.encode().hex(" ").upper(),
    "hex in fours": lambda value: value.encode().hex(" ", 2),
    "hex as a list": lambda value: ", ".join(f"0x{byte:02X}" for byte in value.encode()),
}
"""Where a line may be broken between bytes alone."""
SECRETS = st.text(
    st.sampled_from(string.ascii_letters + string.digits + string.punctuation + " é中😀"),
    min_size=SHORTEST,
    max_size=40,
).filter(lambda value: value == value.strip() and plain_enough(value))
DEPTHS = st.integers(0, 3)
ENDS = st.sampled_from(["\n", "\r\n", "\n    ", " \n\t"])
CODES = st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"])


def plain_enough(value: str) -> bool:
    """Tell whether enough is left to be looked for when blanks and encodings in it are undone."""
    plain = re.sub(
        r"\\[nrt]|\\[0-3]..|\\x..|\\u.{4}|\\U.{8}|[\\ ]|%25|%[0-9a-fA-F]{2}|&#\d+|&#[xX]?|&\w+;",
        "",
        value,
    )
    return value == value.strip("\\") and len(plain) >= SHORTEST


def broken(text: str, width: int, end: str) -> str:
    """Return the text in lines of a width."""
    return end.join(text[at : at + width] for at in range(0, len(text), width))


def nested(text: str, depth: int) -> str:
    """Return the text inside of JSON inside of JSON..."""
    for _ in range(depth):
        text = json.dumps({"said": text})
    return text


def left(masked: bytes) -> str:
    """Return what a masked text has between its marks, but for quotes, escapes and line ends."""
    found = re.search(r"<<(.*)>>", masked.decode("utf-8", "replace"), re.DOTALL)
    assert found, masked
    return re.sub(r"""[\s"'\\]|(?<=\\)[nrt]""", "", found[1].replace("***", ""))


@given(st.data(), SECRETS, st.sampled_from(sorted(ENCODINGS)), DEPTHS, CODES)
@settings(max_examples=500)
def test_a_secret_is_found_in_every_encoding(
    data: st.DataObject, value: str, encoding: str, depth: int, code: str
) -> None:
    text = ENCODINGS[encoding](value)
    if data.draw(st.booleans(), "broken"):
        text = broken(text, data.draw(st.integers(4, 80), "width"), data.draw(ENDS, "end"))
    masked = Redactor([value])(nested(f"<<{text}>>", depth).encode(code))
    assert left(masked) in ("", "b")


@given(SECRETS, st.sampled_from(sorted(APART)), st.integers(1, 20), DEPTHS, ENDS)
def test_a_secret_is_found_in_hex_with_signs_between(
    value: str, form: str, count: int, depth: int, end: str
) -> None:
    parts = APART[form](value).split(" ")
    lines = (" ".join(parts[at : at + count]) for at in range(0, len(parts), count))
    masked = Redactor([value])(nested(f"<<{end.join(lines)}>>", depth).encode())
    assert left(masked) in ("", "0x")


@given(st.data(), SECRETS, st.binary(max_size=9), st.binary(max_size=9), CODES)
def test_a_secret_is_found_inside_of_base64(
    data: st.DataObject, value: str, before: bytes, after: bytes, code: str
) -> None:
    encode = data.draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))
    text = encode(before + value.encode(code) + after).decode()
    text = broken(text, data.draw(st.integers(1, 80), "width"), data.draw(ENDS, "end"))
    masked = Redactor([value])(nested(f"<<{text}>>", data.draw(DEPTHS, "depth")).encode())
    assert b"***" in masked
    assert len(left(masked)) <= 4 * -(-len(before) // 3) + 4 * -(-len(after) // 3) + 8


@given(SECRETS.filter(str.isascii), st.sampled_from(["as it is", "JSON", "percent", "hex"]),
       st.integers(SHORTEST, 40), st.booleans())  # fmt: skip
def test_half_a_secret_at_a_files_end_is_found(
    value: str, encoding: str, size: int, first: bool
) -> None:
    redact = Redactor([value])
    part = value[:size] if first else value[-size:]
    assume(plain_enough(part))
    text = ENCODINGS[encoding](part)
    text = text[1:-1] if encoding == "JSON" else text
    assert b"***" in redact((f"it is {text}\n" if first else f"{text} it is").encode())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("token hf_AbCdEfGhIjKlMnOp used", "token *** used"),
        ("OPENAI sk-proj-0123456789abcdef!", "OPENAI ***!"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': 'Basic ***'}"),
        ("HTTPS_PROXY=http://me:secret@proxy:3128/x", "HTTPS_PROXY=http://me:***@proxy:3128/x"),
        ('"WANDB_API_KEY": "0123456789abcdef"', '"WANDB_API_KEY": "***"'),
        ('{\\"password\\": \\"correct horse\\"}', '{\\"password\\": \\"*** horse\\"}'),
        ("password=correct", "password=***"),
        (nested('{"password": "correct"}', 3), nested('{"password": "***"}', 3)),
        ("tls.key: LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t", "tls.key: ***"),
        ("x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl y", "x *** y"),
        (
            "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n-----END RSA PRIVATE KEY-----\nb",
            "a\n***\nb",
        ),
        (r'"line\nhf_AbCdEfGhIjKlMnOp"', r'"line\n***"'),
        (r'"line\nBearer 0123456789"', r'"line\nBearer ***"'),
        ("key AKIAABCDEFGHIJKLMNOP", "key ***"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    redact = Redactor([])
    assert redact.text(text) == masked
    assert redact.count == 1


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=1024 prompt_tokens: 123456",
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_TOKEN_PATH=/raycluster/token",
        'HF_TOKEN = "env:HF_TOKEN"',
        "http://127.0.0.1:8000/v1/models",
        "INFO 11-26 18:33:40 [core.py:1] task-runner started",
        '"key":"alice"',
        "sha256:0123456789abcdef0123456789abcdef",
    ],
)
def test_what_is_no_secret_is_left(text: str) -> None:
    redact = Redactor([])
    assert redact.text(text) == text
    assert redact.count == 0


def test_short_values_are_not_looked_for_and_keys_of_several_lines_line_by_line() -> None:
    redact = Redactor(["abc", "", "BEGIN\n0123456789abcdefghij\nzz\n"])
    assert redact.text("abc zz 0123456789abcdefghij") == "abc zz ***"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("apikey", True),
        ("DB_PASSWORD", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("RAY_AUTH_MODE", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("max_tokens", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret
