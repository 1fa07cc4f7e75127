"""What is secret among a host's files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from raycluster.core.errors import SpecError
from raycluster.core.interfaces import Secret
from raycluster.export.compose import compose
from raycluster.export.design import Design, app_body, roles
from raycluster.export.systemd import systemd
from raycluster.spec import ClusterSpec
from tests.unit.export.designs import GIVEN, HUB, KEY, PLAIN, TOKEN, WHOLE, design_of


def test_secrets_are_named_and_left_out_unless_given() -> None:
    design = design_of()
    head, gateway, prometheus, *_ = roles(design, design.spec.hosts[0])
    assert head.secrets == {"secrets.json": None, "token": None}
    held = {"gateway/cert.pem", "gateway/key.pem", "gateway/keys.conf"}
    assert gateway.secrets == dict.fromkeys(held)
    assert prometheus.secrets == {}
    assert {"code/raycluster/serve/app.py", "app.json", "members.json"} <= head.files.keys()
    assert "gateway/nginx.conf" in gateway.files


def test_given_secrets_stand_in_secret_files_alone() -> None:
    design = design_of(given=GIVEN)
    parts = [part for host in design.spec.hosts for part in roles(design, host)]
    plain = [content for part in parts for content in part.files.values()]
    plain += [repr(part.process).encode() for part in parts]
    held = [content for part in parts for content in part.secrets.values() if content]
    for value in (TOKEN.encode(), HUB.encode()):
        assert not any(value in content for content in plain)
        assert sum(value in content for content in held) == 3  # once on each host
    shown = KEY.replace("-", r"\\x2d").encode()
    assert [shown in content for content in held].count(True) == 1
    assert not any(shown in content or KEY.encode() in content for content in plain)


def test_a_certificate_of_the_spec_is_no_secret_and_its_key_is_one() -> None:
    tls = {"cert": "c.pem", "key": "file:k.pem"}
    tables = {**WHOLE, "gateway": {**WHOLE["gateway"], "tls": tls}}
    secrets = replace(GIVEN.secrets, certificate=b"PEM", certificate_key=Secret("private"))
    design = design_of(tables, given=replace(GIVEN, secrets=secrets))
    gateway = roles(design, design.spec.hosts[0])[1]
    assert gateway.files["gateway/cert.pem"] == b"PEM"
    assert gateway.secrets["gateway/key.pem"] == b"private"
    design = design_of(tables)
    gateway = roles(design, design.spec.hosts[0])[1]
    assert gateway.secrets.keys() == {f"gateway/{n}" for n in ("cert.pem", "key.pem", "keys.conf")}


def test_nothing_of_it_depends_on_made_up_secrets() -> None:
    first, second = (roles(design_of(), design_of().spec.hosts[0]) for _ in range(2))
    assert first == second
    assert "RAYCLUSTER_TOKEN_ID" not in first[0].process.env
    assert not any("live-id" in path for part in first for path in part.files)


def test_without_secrets_in_the_spec_only_the_token_is_one() -> None:
    design = design_of(PLAIN)
    [head] = roles(design, design.spec.hosts[0])
    assert head.secrets == {"token": None}


def test_every_host_serves_whatever_the_runtimes_are() -> None:
    mixed = {**WHOLE, "workers": [{"host": "10.0.0.2", "gpus": 1, "runtime": {"kind": "native"}}]}
    assert app_body(design_of(mixed))["proxy_location"] == "EveryNode"


def test_replicas_find_secrets_in_a_file_or_in_their_environment() -> None:
    [model] = app_body(design_of())["applications"]
    assert model["args"]["model"]["secrets_path"] == "$RAYCLUSTER_ROOT/secrets.json"
    [model] = app_body(design_of(), env_secrets=True)["applications"]
    assert model["args"]["model"]["secrets_path"] == ""


def test_what_could_not_run_is_refused() -> None:
    spec = design_of().spec
    gpus = {host.name: 1 for host in spec.hosts}
    with pytest.raises(SpecError, match="both have"):
        Design(spec, dict.fromkeys(gpus, "10.0.0.1"), gpus)
    large = {**WHOLE, "head": {"host": "10.0.0.1"}, "models": [{"name": "m", "num_gpus": 4}]}
    with pytest.raises(SpecError, match="GPUs"):
        Design(ClusterSpec.model_validate(large), design_of().addresses, gpus)


NODE = {"host": "fd00::11", "gpus": 0}
NATIVE = {"runtime": {"kind": "native", "python": "/opt/env/bin/python"}}


@pytest.mark.parametrize(("write", "own"), [(compose, {}), (systemd, NATIVE)])
@pytest.mark.parametrize(
    ("gateway", "reached"),
    [
        ({"gateway": {"api_keys": {"alice": "env:KEY"}}}, ("fd00::11", 8080)),
        ({"gateway": {"listen": "fd00::5"}}, ("fd00::5", 8080)),
        ({"gateway": {}}, ("127.0.0.1", 8080)),
        ({}, ("127.0.0.1", 8000)),
    ],
)
def test_the_readme_asks_the_api_where_it_listens(
    write: Any, own: dict[str, Any], gateway: dict[str, Any], reached: tuple[str, int]
) -> None:
    text = write(design_of({**PLAIN, "head": NODE, **own, **gateway}))["README.md"].content.decode()
    [url] = re.findall(r"^curl '(\S+)/v1/models'", text, re.M)
    asked = urlsplit(url)
    assert (asked.hostname, asked.port) == reached
