"""A host's record of members finds hosts that left; how to log in there is the spec's alone."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from raycluster.core.errors import NewerRecordError, RecordError
from raycluster.hosts.fleet import ssh_options
from raycluster.spec import ClusterSpec
from raycluster.state.members import (
    MOST_MEMBERS,
    Former,
    Member,
    former,
    member_of,
    members_file,
    read_members,
    read_token,
)

HOSTILE_SSH = {
    "user": "root",
    "port": 2222,
    "identity_file": "/etc/shadow",
    "known_hosts": "~/.ssh/authorized_keys",
    "host_keys": "accept-new",
    "proxy_jump": "evil.example",
    "connect_timeout": 9999,
}


def spec_of(**parts: object) -> ClusterSpec:
    ssh = {"user": "me", "known_hosts": "/laptop/known_hosts", "host_keys": "accept-new"}
    table = {"cluster": {"name": "q"}, "ssh": ssh, "head": {"host": "h0"}}
    return ClusterSpec.model_validate({**table, **parts})


def told(*members: object, schema: object = 1) -> bytes:
    return json.dumps({"schema": schema, "members": members}).encode()


def reached(spec: ClusterSpec, content: bytes) -> tuple[Former, ...]:
    return former(spec, read_members(content, "h0"))


def old(**changes: Any) -> bytes:
    """A record of before schema numbers: whole hosts."""
    host = spec_of(workers=[{"host": "gone", "name": "gone"}]).hosts[1]
    return json.dumps([{**host.model_dump(mode="json"), **changes}]).encode()


def test_what_was_recorded_is_read() -> None:
    workers = [
        {"host": "a", "name": "a", "port": 2200, "price_per_hour": 1.5},
        {"host": "fd00::1", "name": "b", "private_address": "10.0.0.3", "proxy_jump": "me@gate"},
        {"transport": "local", "name": "c", "runtime": {"kind": "native"}},
    ]
    members = tuple(map(member_of, spec_of(workers=workers).hosts))
    content = members_file(members)
    assert read_members(content, "h0") == members
    assert not any(word in content for word in (b"gate", b"known_hosts", b'"me"'))


def test_nothing_of_how_to_log_in_is_taken_from_a_host() -> None:
    spec = spec_of()
    [left] = reached(spec, old(ssh=HOSTILE_SSH | {"user": "me", "proxy_jump": None}, gpus="all"))
    assert left.host
    options = ssh_options(left.host)
    assert (options.host, options.port) == ("gone", 2222)
    assert (options.user, options.identity_file, options.proxy_jump) == ("me", None, None)
    assert (options.known_hosts, options.host_keys) == ("/laptop/known_hosts", "strict")
    assert (options.host_key, options.connect_timeout) == (None, 10.0)


@pytest.mark.parametrize("key", ["ssh", "known_hosts", "host_keys", "proxy_jump", "transport"])
def test_a_numbered_record_cannot_say_it_either(key: str) -> None:
    words = {key: HOSTILE_SSH.get(key, "local"), "ssh": HOSTILE_SSH, "transport": "local"}
    plain = {"name": "gone", "host": "gone", "kind": "native", "user": member_of(me()).user}
    assert reached(spec_of(), told(plain | words)) == reached(spec_of(), told(plain))


def me() -> Any:
    return spec_of().hosts[0]


def test_a_login_of_another_user_or_jump_host_is_the_specs_or_none() -> None:
    before = spec_of(workers=[{"host": "x", "user": "other", "proxy_jump": "me@gate"}])
    record = members_file(map(member_of, before.hosts))
    [left] = reached(spec_of(), record)
    assert left.host is None
    assert "a user or jump host that the spec no longer has" in left.trouble
    login = {"user": "other", "proxy_jump": "me@gate", "identity_file": "/laptop/key"}
    [left] = reached(spec_of(workers=[{"host": "y", **login}]), record)
    assert left.host
    options = ssh_options(left.host)
    assert (options.user, options.proxy_jump) == ("other", "me@gate")
    assert (options.identity_file, options.host_keys) == ("/laptop/key", "strict")


@pytest.mark.parametrize(
    "content",
    [
        told({"name": "x", "host": "", "kind": "native"}),
        old(transport="local", host=""),
        old(transport="local", host="gone"),
    ],
)
def test_no_host_names_the_laptop(content: bytes) -> None:
    [left] = reached(spec_of(), content)
    assert left.host is None
    assert "was the machine that ran" in left.trouble
    assert "raycluster down" in left.hint


def test_a_local_host_of_the_spec_is_known_again() -> None:
    spec = spec_of(head={"transport": "local"})
    assert former(spec, map(member_of, spec.hosts)) == ()


def test_another_runtime_is_removed_by_the_login_of_the_host_in_the_spec() -> None:
    spec = spec_of(head={"host": "h0", "user": "head", "host_keys": "accept-new"})
    [moved] = reached(spec, told(member_of(spec.hosts[0]).model_dump() | {"kind": "native"}))
    assert moved.host
    assert moved.moved
    assert moved.name == "head (before)"
    assert moved.host.ssh == spec.hosts[0].ssh
    assert moved.host.kind == "native"


@pytest.mark.parametrize("place", ["h0", "elsewhere"])
def test_a_runtime_that_is_not_known_is_said(place: str) -> None:
    kept = member_of(me()).model_dump() | {"host": place, "kind": "podman"}
    [left] = reached(spec_of(), told(kept))
    assert left.host is None
    assert "runtime podman" in left.trouble


def test_every_host_is_there_once_and_has_a_name_of_its_own() -> None:
    plain = {"name": "head", "kind": "docker", "user": member_of(me()).user}
    places = ["a", "b", "A.", "b", "c"]
    found = reached(spec_of(), told(*({**plain, "host": place} for place in places)))
    assert [(f.name, f.member.host) for f in found] == [
        ("head (before)", "a"),
        ("head (before 2)", "b"),
        ("head (before 3)", "c"),
    ]


def test_a_record_of_before_schema_numbers_is_read() -> None:
    assert read_members(old(name="gone (before)", colour="red"), "h0")[0].name == "gone"
    [left] = reached(spec_of(), old())
    assert left.host
    assert (left.name, left.member.address) == ("gone", "gone")


@pytest.mark.parametrize(
    "content",
    [
        *(b"[", b"true", b"[{}]", b"", b"{}", b"null", b"[[]]", b"[null]", b'{"members": []}'),
        *(told(1), told({}), told({"name": "x"}), told(schema="1"), told(schema=True)),
        *(old(name="a\n b"), old(name=5), old(ssh=None), old(runtime=[]), old(host="-oX=y")),
        *(old(host="me@x"), old(host="a b"), old(ssh={"port": 0}), old(ssh={"port": "22"})),
        *(old(host=""), old(private_address="\x1b[2J"), old(runtime={"kind": "x" * 99})),
        *(told({"name": n, "host": "h", "kind": "docker"}) for n in ("", "../x", "A", "x" * 99)),
        told(*([{"name": "x", "host": "h", "kind": "docker"}] * (MOST_MEMBERS + 1))),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_damaged_record_is_one_sentence(content: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        read_members(content, "h0")
    assert str(caught.value).startswith("h0: the record of the cluster's hosts")
    assert str(caught.value).isprintable()


def test_a_newer_record_is_for_a_newer_version() -> None:
    with pytest.raises(NewerRecordError, match="schema 2") as caught:
        read_members(b'{"schema": 2, "hosts": "of another form"}', "h0")
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"x", b"A" * 64, b"a" * 63, b"a" * 65, b"a" * 63 + b"\n"])
def test_a_token_is_64_hexadecimal_digits(content: bytes) -> None:
    with pytest.raises(RecordError, match="token"):
        read_token(content, "h0")
    assert read_token(b"0a" * 32, "h0").reveal() == "0a" * 32


def test_a_member_is_frozen_data() -> None:
    assert set(Member.model_fields) == {
        *("name", "host", "port", "kind", "private_address", "price_per_hour", "user", "via"),
    }


def test_no_bytes_bring_anything_but_the_one_error_or_the_specs_logins() -> None:
    dice = random.Random(14)
    spec = spec_of(workers=[{"host": "y", "user": "other", "proxy_jump": "me@gate"}])
    good = [old(), old(transport="local"), members_file(map(member_of, spec.hosts))]
    pieces = [b'"', b"[", b"}", b",", b"\\ud800", b"1e999", b"null", b"-oX", b"\x1b", b"..", b"@"]
    read = 0
    for _ in range(3000):
        content = bytearray(dice.choice(good))
        for _ in range(dice.randrange(1, 4)):
            start = dice.randrange(len(content) + 1)
            piece = dice.choice([*pieces, dice.randbytes(2), bytes([dice.randrange(32, 127)])])
            content[start : start + dice.randrange(4)] = piece
        try:
            found = reached(spec, bytes(content))
        except RecordError:
            continue
        read += 1
        for left in found:
            assert left.name.isprintable()
            if left.host is None:
                assert left.trouble
                continue
            options = ssh_options(left.host)
            assert (options.user, options.proxy_jump) in {("me", None), ("other", "me@gate")}
            assert (options.known_hosts, options.host_key) == ("/laptop/known_hosts", None)
            assert left.moved or options.host_keys == "strict"
    assert read > 300
