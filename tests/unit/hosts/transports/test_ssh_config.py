"""Our reading of ssh config against OpenSSH's own, and what becomes of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.core.errors import SpecError, UsageError
from raycluster.hosts.transports.ssh_command import command_line
from raycluster.hosts.transports.ssh_config import read_config
from raycluster.hosts.transports.ssh_options import SshOptions, jump_hops
from raycluster.hosts.transports.ssh_target import resolve

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
    "no lines": "# x\u2028Port 8\n# y\x85Port 9\n# z\rPort 10\nUser me\n",
    "ends of lines": "Port 7\r\nUser me \t\f\nHostKeyAlias x\0y\n",
    "a quoted keyword": '"Port" 7\n"User" me\n',
    "includes of nothing": "Include ~i\nInclude ~i/x {folder} {folder}/none\nPort 7\n",
    "include of a long name": f"Include {{folder}}/{'a' * 256} {'b/' * 3000}\nPort 7\n",
    "not ASCII": "Host b\xe9\n Port 7\nHost b*\n HostKeyAlias \xe9\xff\n",
    "what none turns off": "RevokedHostKeys NONE\nKnownHostsCommand none\nIdentityFile none\n",
    "host keys": "RevokedHostKeys /r\nKnownHostsCommand /k %H\nCheckHostIP TRUE\n"
    "RequiredRSASize 3072\nHostKeyAlgorithms ssh-ed25519,rsa-sha2-512\n",
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
    said = subprocess.run(command, check=True, capture_output=True).stdout
    found: dict[str, list[str]] = {}
    for line in said.decode("utf-8", "surrogateescape").split("\n"):
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's client")
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_read_as_openssh_reads_it(name: str, folder: Path) -> None:
    config = folder / "config"
    config.write_text(CONFIGS[name].replace("{folder}", str(folder)), newline="")
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
    assert target.revoked_host_keys == theirs.get("revokedhostkeys", [None])[0]
    command = theirs.get("knownhostscommand", ["none"])[0].partition(" ")[0]
    assert (target.known_hosts_command or "none") == command
    assert target.check_host_ip is (theirs["checkhostip"][0] == "yes")
    assert target.required_rsa_size == int(theirs["requiredrsasize"][0])
    if target.host_key_algorithms:
        assert target.host_key_algorithms == theirs["hostkeyalgorithms"][0]
    assert ours.says_yes("identitiesonly") is (theirs["identitiesonly"][0] == "yes")
    if "identityfile" in ours.values:
        home = str(Path.home())
        raw = [word.replace("~", home, 1) for word in ours.values["identityfile"]]
        assert raw == [path.replace("~", home, 1) for path in theirs.get("identityfile", ["none"])]
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
        ("Include {folder}/loop\n", UsageError),
        ("Include {folder}/pipe\n", UsageError),
        ("Include /dev/zero\n", UsageError),
        ("Include /dev/tty*\n", UsageError),
        ("Port many\n", SpecError),
        ("Port 70000\n", SpecError),
        ("Port ٣\n", SpecError),
        (f"Port {'1' * 4301}\n", SpecError),
        (f"ConnectTimeout {'1' * 4301}\n", SpecError),
        (f"ProxyJump a:{'1' * 4301}\n", SpecError),
        ("ProxyJump a:99999\n", SpecError),
        ("HostName -oProxyCommand=id\n", SpecError),
        ("Host a\n ProxyJump b\nHost *\n ProxyJump a\n", SpecError),
        ("UserKnownHostsFile ~no-such-user/x\n", UsageError),
        ("IdentityFile ${RAYCLUSTER_NOT_SET}/x\n", UsageError),
        ("RevokedHostKeys ~no-such-user/x\n", UsageError),
        (f'Match exec "{"x" * 200_000}"\n', UsageError),
    ],
)
def test_what_is_wrong_is_said(folder: Path, text: str, error: type[Exception]) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").write_text(f"Include {folder}/loop2\nInclude {folder}/loop2\n")
    (folder / "loop2").write_text(f"Include {folder}/l*p\n")
    config = folder / "config"
    config.write_text(text.replace("{folder}", str(folder)))
    with pytest.raises(error) as caught:
        resolve("gpu-1", SshOptions("box", config_file=str(config)))
    assert len(str(caught.value)) < 2000


WORDS = [
    *("Host", "Match", "Include", "Port", "User", "HostName", "ProxyJump", "IdentityFile", "host"),
    *("UserKnownHostsFile", "RevokedHostKeys", "HostKeyAlgorithms", "HostKeyAlias", "user", "all"),
    *("ConnectTimeout", "IdentityAgent", "RequiredRSASize", "originalhost", "box", "*", "!", "~"),
    *(
        "~x",
        "${HOME}",
        "${X",
        "%h",
        "%",
        "%%",
        "none",
        "=",
        '"',
        "'",
        "#",
        ",",
        "\\",
        "/",
        "[",
        "]",
    ),
    *("-", "@", ":", "1", "9" * 5000, "a" * 300, "\0", "\r", "\n", "\n", "\n", " ", " ", " ", "\t"),
    *("\f", "\xe9", "\udcff", "\u2028", "\x85", "\x1b[2J", "config"),
]


@given(text=st.lists(st.sampled_from(WORDS), max_size=40).map("".join) | st.text(max_size=200))
def test_no_config_ends_in_anything_but_an_answer(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    config = tmp_path_factory.getbasetemp() / "config"
    config.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(SpecError, UsageError):
        resolve("gpu-1", SshOptions("box", config_file=str(config)))


def test_who_has_no_name_has_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert resolve("gpu-1", SshOptions("box", config_file="none", user="me")).user == "me"
    assert (
        resolve("gpu-1", SshOptions("box", known_hosts="/k", config_file="none")).user == "4000000"
    )


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


@pytest.mark.parametrize("text", ["@a", "a:", "a:b", ",", "a,,b", "[a", "a:٣", "a:123456"])
def test_jump_hosts_that_are_none(text: str) -> None:
    with pytest.raises(SpecError, match="jump host"):
        jump_hops("gpu-1", text)


@pytest.mark.parametrize(
    "options",
    [
        SshOptions("a", port=0),
        SshOptions("a", port=65536),
        SshOptions("a", user="-l"),
        *(
            SshOptions("a", user=user)
            for user in ("a\nb", "a -b", " a", "a'b", "$(id)", "a\0", "a\\")
        ),
        SshOptions("a", host_key="MD5:00"),
        SshOptions("a", proxy_jump="-oProxyCommand=id"),
    ],
)
def test_options_that_are_refused(options: SshOptions) -> None:
    with pytest.raises(SpecError):
        resolve("gpu-1", SshOptions(**{**vars(options), "config_file": "none"}))


@pytest.mark.parametrize(
    "user",
    ["ACME\\jane", "ACME\\jane doe", "jane@corp.example", "üser", "box$", "j.d+x", "j" * 200],
)
def test_users_as_sshd_knows_them(user: str) -> None:
    target = resolve("n", SshOptions("h", user=user, config_file="none"))
    assert target.user == user
    [hop] = resolve("n", SshOptions("h", proxy_jump=f"{user}@b:23", config_file="none")).jumps
    assert (hop.user, hop.host, hop.port) == (user, "b", 23)
    for options in (SshOptions("h", user=user), SshOptions("h", proxy_jump=f"{user}@b:23")):
        words = list(command_line(replace(options, config_file="none")))
        if options.proxy_jump:
            [inner] = [word for word in words if word.startswith("ProxyCommand=")]
            words = shlex.split(inner.partition("=")[2].replace("%%", "%"))
        assert words[words.index("-l") + 1] == user


def test_the_first_way_wins(tmp_path: Path) -> None:
    def ways(text: str) -> tuple[str | None, int]:
        (tmp_path / "config").write_text(text)
        target = resolve("n", SshOptions("h", config_file=str(tmp_path / "config")))
        return target.proxy_command, len(target.jumps)

    assert ways("ProxyCommand nc %h %p\nProxyJump b\n") == ("nc h 22", 0)
    assert ways("ProxyJump b\nProxyCommand nc %h %p\n") == (None, 1)
    assert ways("ProxyCommand none\nProxyJump b\n") == (None, 0)
    assert ways("ProxyJump none\nProxyCommand nc\n") == (None, 0)
    assert ways("ProxyCommand 'a b' %n %r@%h:%p 50%%\nUser jane\n") == (
        "'a b' h jane@h:22 50%",
        0,
    )
    with pytest.raises(SpecError, match="%x, which means nothing"):
        ways("ProxyCommand nc %x\n")


@pytest.mark.parametrize(
    ("text", "timeout", "patience"),
    [("", 10, 10), ("ProxyCommand x", 10, 60), ("ProxyCommand x\nConnectTimeout 7", 7, 7)],
)
def test_a_proxy_command_is_waited_for(
    tmp_path: Path, text: str, timeout: float, patience: float
) -> None:
    (tmp_path / "config").write_text(text)
    options = SshOptions("h", config_file=str(tmp_path / "config"))
    target = resolve("n", options)
    assert (target.timeout, target.patience) == (timeout, patience)
    assert f"ConnectTimeout={patience}" in command_line(options)
    target = resolve("n", replace(options, connect_timeout=5))
    assert (target.timeout, target.patience) == (5, 5)


def test_match_exec_says_nothing_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config"
    config.write_text('Match exec "echo out; echo err >&2"\nPort 7\n')
    assert resolve("n", SshOptions("h", config_file=str(config))).port == 7
    assert capfd.readouterr() == ("", "")
