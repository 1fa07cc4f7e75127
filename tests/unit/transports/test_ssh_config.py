"""Our reading of ssh config against OpenSSH's own, and what becomes of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from raycluster.errors import SpecError, UsageError
from raycluster.transports.ssh_config import read_config
from raycluster.transports.ssh_options import SshOptions, jump_hops
from raycluster.transports.ssh_target import resolve

CONFIGS = {
    "first value wins": "Host box\n Port 1\nHost *\n Port 2\n User all\n",
    "equals and case": "HOST box\n\tport=22022\n  UsEr = me\n",
    "quotes and comments": '# c\nHost box # not this\n IdentityFile "~/a b" #\n IdentityFile /x#y',
    "patterns": "Host !bad b?x\n Port 7\nHost * !box\n Port 8\n User other\n",
    "match": "Match host box user me\n Port 5\nMatch originalhost b* !user me\n Port 6\n",
    "match after hostname": "Host box\n HostName real.example\nMatch host real.example\n Port 9\n",
    "match exec": 'Match exec "test %h = box"\n Port 11\nMatch exec false\n User never\n',
    "match all": "Match host other\n Port 1\nMatch all\n Port 2\n",
    "tokens": "Host box\n HostName %h.example\n Port 77\n IdentityFile ~/%h-%p-%n-%%\n",
    "lists": "Host box\n UserKnownHostsFile ~/a /b\n IdentitiesOnly yes\n",
    "include": "Host box\n Include {folder}/in*.conf\n Port 3\nHost *\n User late\n",
    "alias": "Host box\n HostKeyAlias other\n ProxyJump a@b:7,c\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files to include."""
    (tmp_path / "in1.conf").write_text("User early\nHost elsewhere\n Port 4\n")
    (tmp_path / "in2.conf").write_text("IdentityFile /included\n")
    return tmp_path


def openssh_says(config: Path) -> dict[str, list[str]]:
    """Return what `ssh -G` prints, as key -> lines."""
    command = ("ssh", "-G", "-F", str(config), "box")
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's client")
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_read_as_openssh_reads_it(name: str, folder: Path) -> None:
    config = folder / "config"
    config.write_text(CONFIGS[name].replace("{folder}", str(folder)))
    theirs = openssh_says(config)
    ours = read_config("box", str(config))
    target = resolve("gpu-1", SshOptions("box", config_file=str(config), proxy_jump="none"))
    assert (target.host, str(target.port), target.user) == (
        theirs["hostname"][0],
        theirs["port"][0],
        theirs["user"][0],
    )
    assert ours.first("hostkeyalias") == theirs.get("hostkeyalias", [None])[0]
    assert ours.first("proxyjump") == theirs.get("proxyjump", [None])[0]
    assert ours.says_yes("identitiesonly") is (theirs["identitiesonly"][0] == "yes")
    if "identityfile" in ours.values:
        home = str(Path.home())
        raw = [word.replace("~", home, 1) for word in ours.values["identityfile"]]
        assert raw == [path.replace("~", home, 1) for path in theirs["identityfile"]]
    if "userknownhostsfile" in ours.values:
        words = [str(Path(word).expanduser()) for word in theirs["userknownhostsfile"][0].split()]
        assert list(target.known_hosts) == words


def test_the_spec_wins(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Port 1\nUser c\nIdentityFile /c\nProxyJump c\nUserKnownHostsFile /k\n")
    said = SshOptions(
        "box", 2, "s", "/s", "/ks", config_file=str(config), proxy_jump="j:3", connect_timeout=4
    )
    target = resolve("gpu-1", said)
    assert (target.port, target.user, target.required_key) == (2, "s", "/s")
    assert target.key_files == ("/s", "/c")
    assert target.known_hosts == ("/ks",)
    assert [(hop.host, hop.port) for hop in target.jumps] == [("c", 1), ("j", 3)]
    assert target.timeout == 4


def test_a_jump_host_is_not_reached_through_itself(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n ProxyJump bastion\n")
    target = resolve("gpu-1", SshOptions("box", config_file=str(config)))
    assert [hop.host for hop in target.jumps] == ["bastion"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('IdentityFile "unbalanced\n', UsageError),
        ("Include {folder}/config\n", UsageError),
        ("Port many\n", SpecError),
        ("Port 70000\n", SpecError),
        ("HostName -oProxyCommand=id\n", SpecError),
        ("Host a\n ProxyJump b\nHost *\n ProxyJump a\n", SpecError),
    ],
)
def test_what_is_wrong_is_said(folder: Path, text: str, error: type[Exception]) -> None:
    config = folder / "config"
    config.write_text(text.replace("{folder}", str(folder)))
    with pytest.raises(error):
        resolve("gpu-1", SshOptions("box", config_file=str(config)))


def test_a_missing_config_is_an_error_only_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("gpu-1", SshOptions("box")).host == "box"
    with pytest.raises(UsageError, match="there is no ssh config"):
        resolve("gpu-1", SshOptions("box", config_file=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("none", ()),
        ("a", ((None, "a", None),)),
        ("u@a:22,b", (("u", "a", 22), (None, "b", None))),
        ("ssh://u@a:22", (("u", "a", 22),)),
        ("u@[::1]:7", (("u", "::1", 7),)),
        ("[fe80::1]", ((None, "fe80::1", None),)),
        ("fe80::1", ((None, "fe80::1", None),)),
    ],
)
def test_jump_hosts(text: str, hops: tuple[object, ...]) -> None:
    assert jump_hops("gpu-1", text) == hops


@pytest.mark.parametrize("text", ["@a", "a:", "a:b", ",", "a,,b", "[a"])
def test_jump_hosts_that_are_none(text: str) -> None:
    with pytest.raises(SpecError, match="jump host"):
        jump_hops("gpu-1", text)


@pytest.mark.parametrize(
    "options",
    [
        SshOptions("a", port=0),
        SshOptions("a", port=65536),
        SshOptions("a", user="-l"),
        SshOptions("a", user="a b"),
        SshOptions("a", host_key="MD5:00"),
        SshOptions("a", proxy_jump="-oProxyCommand=id"),
    ],
)
def test_options_that_are_refused(options: SshOptions) -> None:
    with pytest.raises(SpecError):
        resolve("gpu-1", SshOptions(**{**vars(options), "config_file": "none"}))
