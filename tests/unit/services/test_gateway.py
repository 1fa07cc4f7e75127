"""nginx's configuration from a spec: right for nginx, and nothing in it but what we wrote."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raycluster.core.interfaces import Process, Secret
from raycluster.serve import direct
from raycluster.serve.engines.inside import key
from raycluster.services.gateway import (
    LIMITS_HEADER,
    MODELS_HEADER,
    OWNER_HEADER,
    gateway,
    nginx_conf,
)
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from raycluster.spec.services import Gateway

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789ab"
SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def spec_of(**gate: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "h0"},
            "gateway": gate,
            "models": [{"name": "org/a@b+c"}],
        }
    )


def wiring_of(token: str = "t", **keys: str) -> Wiring:
    secrets = Secrets(api_keys={name: Secret(key) for name, key in keys.items()})
    return Wiring({"head": "10.0.0.1"}, Secret(token), secrets)


def rendered(wiring: Wiring | None = None, **gate: Any) -> str:
    spec = spec_of(**gate)
    return nginx_conf(spec, spec.hosts[0], wiring or wiring_of()).decode()


def process(spec: ClusterSpec, wiring: Wiring) -> Process:
    made = gateway(spec, spec.hosts[0], wiring)
    assert made
    return made


ALL = {
    "keys": {
        "carol": {"key": "env:C", "requests_per_minute": 1, "expires": "2027-01-01"},
        "dave": {"key": "env:D", "requests_per_minute": 9, "models": ["org/a@b+c"]},
    },
    "access_log": "3d",
    "allowed_origins": ["https://a.example", "http://[::1]:3000", "app://obsidian.md"],
    "listen": "::1",
    "api_keys": {"alice": "env:A", "bob": "env:B"},
    "paths": ["/", "/v1/", "/health", "/v1/models"],
    "max_body": "1m",
    "rate_limit": 3,
    "timeout": 1.5,
}


@pytest.mark.parametrize(
    "gate",
    [{}, {"api_keys": ALL["api_keys"]}, {"rate_limit": 2}, {"allowed_origins": ["*"]}, ALL],
)
def test_nginx_accepts_it(gate: dict[str, Any], tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=SBIN)
    if not nginx:
        pytest.skip("needs nginx")
    (tmp_path / "nginx.conf").write_text(rendered(wiring_of(alice=ALICE, bob=BOB), **gate))
    (tmp_path / "temp").mkdir()
    done = subprocess.run(
        [nginx, "-e", "stderr", "-q", "-t", "-p", tmp_path, "-c", "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_with_keys_it_listens_everywhere_and_without_on_loopback() -> None:
    assert "listen 127.0.0.1:8080;" in rendered()
    assert "listen 0.0.0.0:8080;" in rendered(api_keys={"a": "env:A"})
    assert "listen [::]:8080;" in rendered(listen="::")


@pytest.mark.parametrize(
    ("place", "listen", "found"),
    [
        ("fd00::1", None, ["0.0.0.0:8080", "[::]:8080"]),
        ("10.0.0.1", None, ["0.0.0.0:8080"]),
        ("fd00::1", "0.0.0.0", ["0.0.0.0:8080"]),
        ("fd00::1", "fd00::1", ["[fd00::1]:8080"]),
    ],
)
def test_a_host_with_an_ipv6_address_is_reached_by_it(
    place: str, listen: str | None, found: list[str]
) -> None:
    wiring = Wiring({"head": place}, Secret("t"))
    more = {"listen": listen} if listen else {}
    text = rendered(wiring, api_keys={"a": "env:A"}, **more)
    assert re.findall(r"(?m)^ +listen (.*);$", text) == found


@pytest.mark.parametrize(
    ("gate", "note"),
    [
        ({}, ""),
        ({"listen": "::1"}, ""),
        ({"listen": "10.0.0.1"}, "requires no key"),
        ({"api_keys": {"a": "env:A"}}, "unencrypted"),
        ({"api_keys": {"a": "env:A"}, "listen": "127.0.0.1"}, ""),
        ({"api_keys": {"a": "env:A"}, "tls": {"cert": "c", "key": "file:k"}}, ""),
    ],
)
def test_what_is_open_to_others_is_said(gate: dict[str, Any], note: str) -> None:
    said = process(spec_of(**gate), wiring_of()).note
    assert note in said
    assert bool(note) == bool(said)


def test_a_key_that_is_not_there_lets_nobody_in() -> None:
    conf = rendered(wiring_of(), api_keys={"alice": "env:A"})
    assert 'if ($key_name = "") { return 401; }' in conf
    assert '"alice"' not in conf


def test_it_runs_where_it_is_asked_for() -> None:
    both = {"cluster": {"name": "q"}, "head": {"host": "a"}, "workers": [{"host": "b"}]}
    spec = ClusterSpec.model_validate({**both, "gateway": {}})
    assert [bool(gateway(spec, host, wiring_of())) for host in spec.hosts] == [True, False]
    everywhere = ClusterSpec.model_validate({**both, "gateway": {"on": "all"}})
    assert all(gateway(everywhere, host, wiring_of()) for host in everywhere.hosts)
    without = ClusterSpec.model_validate(both)
    assert [gateway(without, host, wiring_of()) for host in without.hosts] == [None, None]


def test_a_key_is_in_its_file_alone_and_makes_the_process_not_out_of_date() -> None:
    spec = spec_of(api_keys={"alice": "env:A"})
    first, second = (process(spec, wiring_of(alice=key)) for key in (ALICE, BOB))
    assert first.live_id != second.live_id
    assert first.live_id == process(spec, wiring_of(alice=ALICE)).live_id
    assert first.fingerprint == second.fingerprint
    assert ALICE not in repr(first)
    assert ALICE not in " ".join([*first.argv, *first.env.values(), first.live_id])


def test_it_asks_its_own_node_first_and_then_the_others() -> None:
    workers = [{"host": "b", "name": "b"}, {"host": "c", "name": "c"}]
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "a"}, "workers": workers, "gateway": {}}
    )
    wiring = Wiring({"head": "10.0.0.1", "b": "fd00::2", "c": ""}, Secret("t"))
    conf = nginx_conf(spec, spec.hosts[1], wiring).decode()
    servers = [line.split() for line in conf.splitlines() if line.strip().startswith("server ")]
    assert [words[1] for words in servers if len(words) > 2] == ["127.0.0.1:8000", "10.0.0.1:8000"]
    conf = nginx_conf(spec, spec.hosts[0], wiring).decode()
    assert "server [fd00::2]:8000 max_fails=1 fail_timeout=5s backup;" in conf


def test_what_tells_keys_apart_is_of_no_use_without_the_token() -> None:
    spec = spec_of(api_keys={"alice": "env:A"})
    ids = {process(spec, wiring_of(token, alice=ALICE)).live_id for token in ("t", "u")}
    assert len(ids) == 2


printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


@given(printable)
def test_a_key_stands_there_as_a_pattern_that_matches_it_alone(key: str) -> None:
    conf = rendered(wiring_of(alice=key), api_keys={"alice": "env:A"})
    [line] = [line for line in conf.splitlines() if line.endswith('"alice";')]
    quoted = re.fullmatch(r' {4}"~\^\(\?i:bearer\) \+((?:[A-Za-z0-9]|\\\\x[0-9a-f]{2})+)'
                          r'\\\\z" "alice";', line)  # fmt: skip
    assert quoted
    assert re.fullmatch(quoted[1].replace("\\\\", "\\"), key)


def directives(conf: str) -> list[str]:
    """The first word of every line that is no value of a map."""
    return [line.split()[0] for line in conf.splitlines() if line.split() and '"~' not in line]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.text(max_size=30) | st.sampled_from(["::1", "/v1/", "8m", "1.2.3.4"])
            for name in ("listen", "max_body", "image", "on", "timeout")
        }
        | {
            "api_keys": st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=2),
            "paths": st.lists(st.text(max_size=20) | st.from_regex(r"/[ -~]*"), max_size=1),
            "rate_limit": st.integers() | st.text(max_size=5),
            "allowed_origins": st.lists(st.text(max_size=20) | st.from_regex(r"a://[ -~]*")),
        },
    )
)
def test_no_value_becomes_a_directive(gate: dict[str, Any]) -> None:
    try:
        wanted = Gateway.model_validate(gate)
    except ValidationError:
        return
    spec = spec_of(**wanted.model_dump(exclude_none=True))
    wiring = wiring_of(**dict.fromkeys(wanted.api_keys, "; } evil;"))
    conf = nginx_conf(spec, spec.hosts[0], wiring).decode()
    known = directives(rendered(wiring_of(alice=ALICE, bob=BOB), **ALL) + rendered())
    assert set(directives(conf)) <= set(known)
    assert conf.count("{") == conf.count("}")


INJECTIONS = ["/v1/;}", "/a b", "/{", "/$uri", "/a\n/b", '/"', "/\\", "/../x", "//", "v1", "/a#b"]


@pytest.mark.parametrize("path", INJECTIONS)
def test_what_is_no_plain_path_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match=r"a path such as|line breaks"):
        Gateway.model_validate({"paths": [path]})


@pytest.mark.parametrize("owner", ["", "a b", 'a"', "a;", "a\n", "-a", "ä", "a" * 65])
def test_what_is_no_plain_name_of_a_key_is_refused(owner: str) -> None:
    with pytest.raises(ValidationError):
        Gateway.model_validate({"api_keys": {owner: "env:A"}})


@pytest.mark.parametrize(
    "origin",
    [
        *("https://a.example/", "https://a.example/x", "a.example", "https://", "https://a b"),
        *("https://*.a.example", "https://a.example:x", "https://a@b", '"', "https://a;}", "**"),
    ],
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match=r"an origin such as|at least 1 char"):
        Gateway.model_validate({"allowed_origins": [origin]})


A_KEY = {"key": "env:A"}
WITH_MODELS = {
    "cluster": {"name": "q"},
    "head": {"host": "h"},
    "models": [{"name": "a", "adapters": {"a-law": "x/y"}}, {"name": "b"}],
}


def keyed(**key: Any) -> ClusterSpec:
    gate = {"keys": {"alice": {**A_KEY, **key}}}
    return ClusterSpec.model_validate({**WITH_MODELS, "gateway": gate})


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"models": ["c"]}, r"gateway\.keys\.alice\.models: 'c' is not a model in the spec"),
        ({"models": ["a-law"]}, "'a-law' is a further name: name the model itself, 'a'"),
        ({"models": []}, "at least 1"),
        ({"requests_per_minute": 0}, "greater than or equal to 1"),
        ({"requests_per_minute": True}, "a number is expected"),
        ({"expires": "soon"}, "a date such as 2027-01-01"),
        ({"expires": "2027-01-01T10:00:00"}, "with its offset"),
        ({"expires": "2027-02-30"}, "a date such as"),
        ({"expires": 2027}, "a date such as"),
        ({"tokens_per_minute": 0}, "greater than or equal to 1"),
        ({"tokens_per_day": 10**13}, "less than or equal to"),
        ({"tokens_per_day": 1.5}, "valid integer|a number is expected"),
        ({"priority": 5}, "'high', 'normal' or 'low'"),
        ({"key": "sk-123"}, "env:NAME"),
    ],
)
def test_a_key_that_cannot_be_kept_to_is_refused(key: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        keyed(**key)


@pytest.mark.parametrize(
    ("expires", "moment"),
    [
        ("2027-01-01", "2027-01-01T00:00:00+00:00"),
        ("2027-01-01T09:00:00Z", "2027-01-01T09:00:00+00:00"),
        ("2027-01-01T09:00:00+02:00", "2027-01-01T07:00:00+00:00"),
    ],
)
def test_a_key_expires_at_a_moment(expires: str, moment: str) -> None:
    read = tomllib.loads(f"expires = {expires}")["expires"]
    for given_as in (expires, read):
        gate = keyed(expires=given_as).gateway
        assert gate
        found = gate.keys["alice"].expires
        assert found == datetime.fromisoformat(moment)


def test_an_owner_has_one_key() -> None:
    with pytest.raises(ValidationError, match="'a' is in both `api_keys` and `keys`"):
        Gateway.model_validate({"api_keys": {"a": "env:A"}, "keys": {"a": A_KEY}})


def test_vllm_s_rust_front_end_tells_no_keys_apart() -> None:
    gate = {"keys": {"alice": {**A_KEY, "models": ["a"]}}}
    env = {"VLLM_USE_RUST_FRONTEND": "1"}
    with pytest.raises(ValidationError, match="Rust front end"):
        ClusterSpec.model_validate({**WITH_MODELS, "gateway": gate, "env": env})


def test_the_key_of_a_drill_has_no_limits() -> None:
    many = {"a": {**A_KEY, "models": ["a"]}, "b": A_KEY, "c": A_KEY}
    assert Gateway.model_validate({"keys": many}).unlimited == "b"
    assert Gateway.model_validate({"keys": {"a": many["a"]}}).unlimited == ""
    assert Gateway.model_validate({"keys": many, "api_keys": {"aa": "env:A"}}).unlimited == "aa"


def test_engines_read_the_headers_that_it_sends() -> None:
    assert OWNER_HEADER.lower() == key.OWNER_HEADER
    assert MODELS_HEADER.lower() == key.MODELS_HEADER
    assert LIMITS_HEADER.lower() == key.LIMITS_HEADER == direct.LIMITS_HEADER
    assert OWNER_HEADER.lower() == direct.OWNER_HEADER
