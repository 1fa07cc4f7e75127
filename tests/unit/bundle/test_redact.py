"""What is masked, and what is left."""

from __future__ import annotations

import base64
import html
import json
import re
import string
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.bundle.redact import Redactor, is_secret_name
from raycluster.templates import pattern

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


@given(
    st.text(alphabet=string.ascii_letters + string.digits + "+/ é", min_size=8, max_size=40).filter(
        lambda value: value == value.strip() and len(value.encode()) >= 8
    ),
    st.binary(max_size=9),
    st.binary(max_size=9),
)
def test_a_known_value_is_found_inside_of_base64(value: str, before: bytes, after: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        masked = Redactor([value])(b"Basic-ish: " + encode(before + value.encode() + after))
        assert b"***" in masked


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
