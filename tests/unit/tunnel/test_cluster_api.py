"""What `--url` may be."""

from __future__ import annotations

import pytest

from raycluster.core.errors import HostError, SecretError, UsageError
from raycluster.core.interfaces import Secret
from raycluster.hosts.http import asking_client
from raycluster.observe.model_hub import read_hub
from raycluster.tunnel.cluster_api import given, key_headers
from tests.unit.spec.test_secret_sources import ODD


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://[::1]:8000/v1", "http://a"])
def test_an_address(url: str) -> None:
    assert given(url, "m", {}, "").base_url == url


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("127.0.0.1:8000", "not an HTTP URL"),
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://x:0", "port 0"),
        ("http://x:y", "Invalid port"),
        ("http://[::1", "Invalid port"),
        ("http://", "no host"),
        ("http://:8000", "no host"),
        ("http://a\x00b", "non-printable"),
        ("http://bücher.example", "non-ASCII"),
        ("http://a/b c", "a space"),
        ("http://me:hunter2/x@a", "before `@`"),
        ("http://me:1@2@a:hunter2", "before `@`"),
    ],
)
def test_no_address(url: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        given(url, "m", {}, "")
    assert caught.value.where == "--url"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ODD)
def test_no_key_ends_in_anything_but_an_error_without_it(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycluster.spec.secret_sources._variable", lambda name, known: value)
    if value in ("hunter2\n",):  # one line end of a source is dropped
        assert key_headers("env:KEY", "https://a") == {"authorization": "Bearer hunter2"}
        return
    with pytest.raises(SecretError) as caught:
        key_headers("env:KEY", "https://a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", [odd for odd in ODD if odd])
def test_other_headers_that_hold_a_secret(value: str) -> None:
    with pytest.raises(SecretError, match="HF_TOKEN"):
        read_hub("http://127.0.0.1:9", Secret(value), ())
    with pytest.raises(HostError, match="is not valid") as caught:
        asking_client(lambda *_: b"", 9, token=value)
    assert value not in str(caught.value)


def test_a_key_goes_to_no_forward_that_somebody_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "k")
    assert key_headers("env:KEY", "https://a") == {"authorization": "Bearer k"}
    assert key_headers("", "") == {}
    with pytest.raises(UsageError, match="does not use a key"):
        key_headers("env:KEY", "")
