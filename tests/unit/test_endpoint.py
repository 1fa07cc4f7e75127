"""What `--url` may be."""

from __future__ import annotations

import pytest

from raycluster.endpoint import given, key_headers
from raycluster.errors import UsageError


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://[::1]:8000/v1", "http://a"])
def test_an_address(url: str) -> None:
    assert given(url, "m", {}, "").base_url == url


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("127.0.0.1:8000", "not an http address"),
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://x:0", "port 0"),
        ("http://x:y", "Invalid port"),
        ("http://[::1", "Invalid port"),
        ("http://", "no host"),
        ("http://:8000", "no host"),
        ("http://a\x00b", "non-printable"),
    ],
)
def test_no_address(url: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        given(url, "m", {}, "")
    assert caught.value.where == "--url"


def test_a_key_goes_to_no_forward_that_somebody_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "k")
    assert key_headers("env:KEY", "https://a") == {"authorization": "Bearer k"}
    assert key_headers("", "") == {}
    with pytest.raises(UsageError, match="takes no key"):
        key_headers("env:KEY", "")
