"""Hosts as providers show them, and the file made of them."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from raycluster.commands.init import init, init_text, own_name
from raycluster.core.errors import UsageError
from raycluster.spec.given import parse_host


@pytest.mark.parametrize(
    ("given", "table"),
    [
        ("gpu-1", {"host": "gpu-1"}),
        ("10.0.0.1:2222", {"host": "10.0.0.1", "port": 2222}),
        ("root@77.104.167.149:55089", {"host": "77.104.167.149", "port": 55089, "user": "root"}),
        ("ssh://root@h:23/", {"host": "h", "port": 23, "user": "root"}),
        ("a@corp@h", {"host": "h", "user": "a@corp"}),
        ("::1", {"host": "::1"}),
        ("fe80:0:0:0:0:0:0:22", {"host": "fe80:0:0:0:0:0:0:22"}),
        ("[::1]:22", {"host": "::1", "port": 22}),
        ("me@[fe80::1%eth0]", {"host": "fe80::1%eth0", "user": "me"}),
        ("local", {"transport": "local"}),
        ("ssh -p 55089 root@77.104.167.149",
         {"host": "77.104.167.149", "port": 55089, "user": "root"}),
        ("ssh root@h -p23 -L 8080:localhost:8080", {"host": "h", "port": 23, "user": "root"}),
        (" ssh -AC -i '~/.ssh/my key' -J me@b:1 -l ray h ",
         {"host": "h", "user": "ray", "identity_file": "~/.ssh/my key", "proxy_jump": "me@b:1"}),
        (r"ACME\jane@h", {"host": "h", "user": r"ACME\jane"}),
        (r"ssh ACME\jane@h", {"host": "h", "user": r"ACME\jane"}),
        (r"ssh ACME\\jane@h", {"host": "h", "user": r"ACME\jane"}),
        (r"ssh 'ACME\jane@h'", {"host": "h", "user": r"ACME\jane"}),
        ("ssh -l 'jane doe' h", {"host": "h", "user": "jane doe"}),
        ("ssh ssh://ACME%5Cjane@h:24", {"host": "h", "user": r"ACME\jane", "port": 24}),
        ("$ /usr/bin/ssh -p 22 h", {"host": "h", "port": 22}),
        ("ssh -o User=me -oPort=24 -o 'IdentityFile ~/k' -o ProxyJump=b -o ConnectTimeout=7 h",
         {"host": "h", "user": "me", "port": 24, "identity_file": "~/k", "proxy_jump": "b",
          "connect_timeout": 7}),
        ("ssh -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=~/known h",
         {"host": "h", "host_keys": "accept-new", "known_hosts": "~/known"}),
        ("ssh -o stricthostkeychecking=ask -o IdentitiesOnly=yes -i k h",
         {"host": "h", "host_keys": "strict", "identity_file": "k"}),
    ],
)  # fmt: skip
def test_a_host_is_read(given: str, table: dict[str, object]) -> None:
    assert parse_host(given) == table


@pytest.mark.parametrize(
    "given",
    ["", " ", "root@", "a b", "h:", "h:x", "h:0", "h:65536", "[::1", "ssh ", "ssh -p 22", "-p 22",
     "ssh -p x h", "ssh 'h", "-oProxyCommand=x", "ssh -l -oX h", "h:99999999999", "ssh -p"],
)  # fmt: skip
def test_what_is_no_host_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        parse_host(given)


@pytest.mark.parametrize(
    ("given", "what", "hint"),
    [
        ("ssh -o ProxyCommand='nc -x p %h %p' h", "has -o ProxyCommand=nc -x p %h %p",
         "write `ProxyCommand nc -x p %h %p` under `Host h` in ~/.ssh/config"),
        ("ssh -F my.conf h", "has -F my.conf", "write `Include my.conf` into ~/.ssh/config"),
        ("ssh -o StrictHostKeyChecking=no h", "allows man-in-the-middle attacks", "accept-new"),
        ("ssh -o UserKnownHostsFile=/dev/null h", "discards host keys", "accept-new"),
        ("ssh -4 h", "has -4", "`AddressFamily inet` under `Host h`"),
        ("ssh -o IdentitiesOnly=yes h", "without -i", "`IdentitiesOnly yes`"),
        ("ssh -o HostName=10.0.0.1 h", "HostName", "use 10.0.0.1 as the host"),
        ("ssh -o PasswordAuthentication=yes h", "PasswordAuthentication=yes", "~/.ssh/config"),
        ("ssh -c aes128-ctr h", "has -c", "`Ciphers aes128-ctr`"),
        ("ssh -S none h", "has -S none", "remove it"),
        ("ssh -i a -i b h", "gives both 'a' and 'b' for identity_file", "remove one of them"),
        ("ssh -p 22 ssh://h:23", "gives both 23 and 22 for port", "remove one of them"),
        ("ssh h nvidia-smi -L", "ends with a command (`nvidia-smi -L`)", "remove the command"),
        ("root:secret@h", "'h' contains a password", "log in with a key"),
    ],
)  # fmt: skip
def test_what_the_spec_has_no_word_for_is_refused(given: str, what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        init_text([given])
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_what_does_not_matter_is_left_out_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "ssh -A -L 8080:localhost:8080 -o ServerAliveInterval=30 -o ForwardAgent=yes h"
    init([given], output=tmp_path / "cluster.toml")
    said = capsys.readouterr().err
    assert "h: -A is ignored: it only affects interactive sessions\n" in said
    assert "h: -L 8080:localhost:8080 is ignored: forwards are made by" in said
    assert "-o ServerAliveInterval=30 is ignored: raycluster checks the connection" in said
    assert "-o ForwardAgent=yes is ignored" in said


@pytest.mark.parametrize(
    "user", [r"ACME\jane", "jane@corp.example", "jane doe", "üser", "box$", "j.d+x", "j" * 200]
)
def test_users_as_sshd_knows_them_are_kept(user: str) -> None:
    assert tomllib.loads(init_text([f"{user}@h"]))["head"]["user"] == user
    text = init_text(["ssh -J '" + user + "@b:23' h"])
    assert tomllib.loads(text)["head"]["proxy_jump"] == f"{user}@b:23"


def test_a_port_after_a_bare_ipv6_address_is_asked_for_in_brackets() -> None:
    with pytest.raises(UsageError) as caught:
        parse_host("root@::1:22")
    assert caught.value.hint == "[::1]:22 or [::1:22]"


def test_hosts_and_names_are_filled_in() -> None:
    text = init_text(["root@a:1", "b", "c"], "mine", "org/model")
    document = tomllib.loads(text)
    assert document["cluster"]["name"] == "mine"
    assert document["models"] == [{"name": "org/model"}]
    head = document["head"]
    assert (head["host"], head["port"], head["user"]) == ("a", 1, "root")
    assert document["workers"] == [{"host": "b"}, {"host": "c"}]


def test_each_cluster_gets_a_name_and_an_owner_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ACME\\Jane Doe")
    clusters = []
    for file in ("a.toml", "b.toml"):
        init(["h"], output=tmp_path / file)
        clusters.append(tomllib.loads((tmp_path / file).read_text())["cluster"])
    assert all(re.fullmatch("acme-jane-doe-[0-9a-f]{4}", c["name"]) for c in clusters)
    machine = os.uname().nodename.partition(".")[0]
    assert {c["owner"] for c in clusters} == {f"ACME\\Jane Doe@{machine}"}
    assert clusters[0]["name"] != clusters[1]["name"]


@pytest.mark.parametrize("user", ["", "-", "Ü", "x" * 80, "a_b.c"])
def test_whatever_the_user_is_called_the_cluster_s_name_is_valid(user: str) -> None:
    assert init_text(["h"], name=own_name(user))


@pytest.mark.parametrize(
    ("hosts", "name", "said"),
    [
        (["a", "a"], "q", "head and worker-1 are the same machine"),
        (["$(id)"], "q", "head.host: a host name"),
        (["a"], "Q Q", "cluster.name: lower-case letters"),
    ],
)
def test_what_would_not_be_valid_is_not_written(hosts: list[str], name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        init_text(hosts, name=name)
    assert str(caught.value).startswith(f"init: {said}")


def test_a_model_s_name_that_is_too_long_is_told_its_limit() -> None:
    with pytest.raises(UsageError, match="at most 256 letters"):
        init_text(["a"], model="m" * 257)


def test_what_was_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(["a"], output=tmp_path / "cluster.toml")
    assert capsys.readouterr() == (
        "",
        f"wrote {tmp_path}/cluster.toml; next: raycluster check {tmp_path}/cluster.toml\n",
    )


def test_a_file_is_not_overwritten_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    init(["a"], output=path)
    before = path.read_text()
    with pytest.raises(UsageError, match="already exists"):
        init(["b"], output=path)
    assert path.read_text() == before
    init(["b"], output=path, force=True)
    assert 'host = "b"' in path.read_text()
