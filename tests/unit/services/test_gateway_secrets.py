"""From the sources that `[gateway]` names to keys and certificate, or to one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycluster.core.errors import SecretError
from raycluster.core.interfaces import RegistryLogin, Secret
from raycluster.spec import ClusterSpec, read_spec
from raycluster.spec.secret_sources import resolve_all

GOOD, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


def spec_of(gate: dict[str, Any] | None) -> ClusterSpec:
    table = {} if gate is None else {"gateway": gate}
    return ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}, **table})


def test_without_a_gateway_there_are_none() -> None:
    assert resolve_all(spec_of(None), {}).api_keys == {}


def test_keys_come_from_their_sources() -> None:
    found = resolve_all(
        spec_of({"api_keys": {"a": "env:A", "b": "env:B"}}), {"A": GOOD, "B": OTHER}
    )
    assert found.api_keys == {"a": Secret(GOOD), "b": Secret(OTHER)}
    assert GOOD not in repr(found)


@pytest.mark.parametrize(
    ("environ", "where", "what"),
    [
        ({}, "secret b", "not set"),
        ({"B": "short"}, "gateway.api_keys.b", "16 to 512"),
        ({"B": "sixteen letters and spaces"}, "gateway.api_keys.b", "16 to 512"),
        ({"B": "sk-0123456789abcdeé"}, "gateway.api_keys.b", "16 to 512"),
        ({"B": GOOD}, "gateway.api_keys.b", "the same key as a's"),
    ],
)
def test_a_key_that_cannot_be_used_is_an_error(
    environ: dict[str, str], where: str, what: str
) -> None:
    spec = spec_of({"api_keys": {"a": "env:A", "b": "env:B"}})
    with pytest.raises(SecretError, match=what) as error:
        resolve_all(spec, {"A": GOOD, **environ})
    assert error.value.where == where
    assert environ.get("B", "-") not in str(error.value)


def test_a_key_with_limits_comes_from_its_source_too() -> None:
    spec = spec_of({"api_keys": {"a": "env:A"}, "keys": {"b": {"key": "env:B"}}})
    assert resolve_all(spec, {"A": GOOD, "B": OTHER}).api_keys["b"] == Secret(OTHER)
    for wrong, what in (("short", "16 to 512"), (GOOD, "the same key as a's")):
        with pytest.raises(SecretError, match=what) as error:
            resolve_all(spec, {"A": GOOD, "B": wrong})
        assert error.value.where == "gateway.keys.b"


def test_certificate_and_keys_lie_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(
        'schema = 1\n[cluster]\nname = "q"\n[head]\nhost = "h"\n[gateway]\n'
        'api_keys = { a = "file:./a.key" }\n'
        'keys.b = { key = "file:./b.key", expires = 2027-01-01 }\n'
        'tls = { cert = "./cert.pem", key = "file:./key.pem" }\n'
    )
    for name, content in {
        "a.key": GOOD,
        "b.key": OTHER,
        "cert.pem": "CERT\n",
        "key.pem": "KEY\n",
    }.items():
        (tmp_path / name).write_text(content)
    found = resolve_all(read_spec(tmp_path / "cluster.toml", {}), {})
    assert (found.certificate, found.certificate_key) == (b"CERT\n", Secret("KEY"))
    assert found.api_keys == {"a": Secret(GOOD), "b": Secret(OTHER)}


def test_a_certificate_that_is_not_there_is_an_error() -> None:
    spec = spec_of({"tls": {"cert": "/no/such.pem", "key": "file:/no/key.pem"}})
    with pytest.raises(SecretError, match=r"/no/such\.pem cannot be read: No such file"):
        resolve_all(spec, {})


def test_the_login_of_a_registry_comes_from_its_sources_and_is_not_shown() -> None:
    table = {"server": "ghcr.io", "username": "env:U", "password": "env:P"}
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "registry": table}
    )
    found = resolve_all(spec, {"U": "puller", "P": "a password"})
    assert found.registry == RegistryLogin("ghcr.io", Secret("puller"), Secret("a password"))
    assert "a password" not in repr(found)
    with pytest.raises(SecretError, match=r"registry\.password.*the variable P is not set"):
        resolve_all(spec, {"U": "puller"})
