"""known_hosts files: which lines are about a host, and what they decide."""

from __future__ import annotations

import base64
import contextlib
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycluster.core.errors import HostKeyError
from raycluster.hosts.transports.ssh_hostkeys import ALGORITHMS, HostKey, algorithms, verify
from raycluster.hosts.transports.ssh_options import SshOptions
from raycluster.hosts.transports.ssh_target import SshTarget, resolve


def key(seed: int, kind: str = "ssh-ed25519") -> HostKey:
    """Return some key; only its bytes matter here."""
    name = kind.encode()
    blob = struct.pack(">I", len(name)) + name + struct.pack(">I", 32) + bytes([seed]) * 32
    return HostKey(kind, blob)


def line(names: str, host_key: HostKey) -> str:
    """Return a line of a known_hosts file."""
    return f"{names} {host_key.kind} {base64.b64encode(host_key.blob).decode()}"


GOOD, BAD = key(1), key(2)
SALTED = "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg="  # 192.168.1.61
PIECES = [
    *(b" ", b"\t", b"\n", b"\r", b"\0", b"box", b"*", b"!", b",", b"@revoked", b"@", b"|", b"|1|"),
    *(b"#", b"\xc3\xa9", b"\xff", b"ssh-rsa", b"ssh-ed25519", b"AAAA", b"=", b"[", b"SSHKRL\n\0"),
    *(line("box", GOOD).encode(), line("box", BAD).encode(), SALTED.encode()),
]


def target(tmp_path: Path, text: str, host: str = "box", port: int = 22, **more: str) -> SshTarget:
    """Return a host whose only known_hosts file holds a text."""
    file = tmp_path / "known"
    file.write_text(text)
    options = SshOptions(host, port, known_hosts=str(file), config_file="none", **more)  # type: ignore[arg-type]
    return replace(resolve("gpu-1", options), global_known_hosts=())


@pytest.mark.parametrize(
    ("names", "host", "port"),
    [
        ("box", "box", 22),
        ("box", "BOX", 22),
        ("Box", "box", 22),
        ("a,box,b", "box", 22),
        ("*", "box", 22),
        ("b?x", "box", 22),
        ("*.example,!bad.example", "good.example", 22),
        ("[box]:2222", "box", 2222),
        ("box", "box", 2222),
        ("[10.0.0.*]:2222", "10.0.0.7", 2222),
        ("::1", "::1", 22),
        ("[::1]:2222", "::1", 2222),
        (SALTED, "192.168.1.61", 22),
    ],
)
def test_a_line_that_is_about_the_host(tmp_path: Path, names: str, host: str, port: int) -> None:
    verify(target(tmp_path, line(names, GOOD), host, port), GOOD)


@pytest.mark.parametrize(
    ("names", "host", "port"),
    [
        ("other", "box", 22),
        ("[box]:2222", "box", 22),
        ("[box]:2222", "box", 2223),
        ("*.example,!bad.example", "bad.example", 22),
        (SALTED, "192.168.1.62", 22),
        ("|1|nonsense", "box", 22),
        ("|1|%%%|%%%", "box", 22),
        ("b[o]x", "box", 22),
    ],
)
def test_a_line_that_is_not(tmp_path: Path, names: str, host: str, port: int) -> None:
    with pytest.raises(HostKeyError, match="unknown"):
        verify(target(tmp_path, line(names, GOOD), host, port), GOOD)


def test_one_good_line_among_others_is_enough(tmp_path: Path) -> None:
    verify(target(tmp_path, f"{line('box', BAD)}\n{line('box', GOOD)}\n"), GOOD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (line("box", BAD), "changed"),
        (line("box", key(1, "ssh-rsa")), "changed"),
        (f"{line('|2|x|y,box', GOOD)}", "could not be read|unknown"),
        (line("box", BAD) + "\n" + line("*", key(3)), "changed"),
        (f"@revoked {line('*', GOOD)}\n{line('box', GOOD)}", "revoked"),
        (f"@revoked {line('*', BAD)}", "unknown"),
        (f"@cert-authority {line('*', GOOD)}", "certificate authority"),
        (f"@strange {line('box', GOOD)}", "could not be read: .*known:1"),
        ("box ssh-ed25519", "could not be read: .*known:1"),
        ("box ssh-ed25519 %%%", "could not be read: .*known:1"),
        (line("box", GOOD).replace("ssh-ed25519 ", "ssh-rsa "), "could not be read: .*known:1"),
        ("", "unknown"),
    ],
)
def test_what_refuses(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(HostKeyError, match=said) as caught:
        verify(target(tmp_path, text), GOOD)
    assert GOOD.fingerprint in str(caught.value)
    assert caught.value.hint


def test_a_pin_decides_alone_but_for_revocation(tmp_path: Path) -> None:
    verify(target(tmp_path, line("box", BAD), host_key=GOOD.fingerprint), GOOD)
    with pytest.raises(HostKeyError, match="the spec pins"):
        verify(target(tmp_path, line("box", GOOD), host_key=BAD.fingerprint), GOOD)
    with pytest.raises(HostKeyError, match="revoked"):
        revoked = f"@revoked {line('box', GOOD)}"
        verify(target(tmp_path, revoked, host_key=GOOD.fingerprint), GOOD)


@pytest.mark.parametrize("text", [line("box", BAD), f"@revoked {line('box', GOOD)}"])
def test_accept_new_accepts_nothing_else(tmp_path: Path, text: str) -> None:
    host = target(tmp_path, text, host_keys="accept-new")
    with pytest.raises(HostKeyError):
        verify(host, GOOD)
    assert (tmp_path / "known").read_text() == text


def test_accept_new_that_cannot_be_recorded(tmp_path: Path) -> None:
    host = target(tmp_path, "", host_keys="accept-new")
    with pytest.raises(HostKeyError, match="cannot be recorded"):
        verify(replace(host, known_hosts=("/proc/raycluster/known",)), GOOD)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", "ssh-ed25519"),
        (line("box", GOOD), "ssh-ed25519"),
        (line("box", key(1, "ssh-rsa")), "rsa-sha2-512"),
        (f"{line('box', key(1, 'ssh-rsa'))}\n{line('box', GOOD)}", "ssh-ed25519"),
        (f"{line('*', key(1, 'ssh-rsa'))}\n@revoked {line('box', GOOD)}", "rsa-sha2-512"),
        (f"@revoked {line('box', key(1, 'ssh-rsa'))}", "ssh-ed25519"),
    ],
)
def test_known_kinds_are_asked_for_first(tmp_path: Path, text: str, first: str) -> None:
    offered = algorithms(target(tmp_path, text))
    assert offered[0] == first
    assert sorted(offered) == sorted(ALGORITHMS)


@pytest.mark.parametrize(
    ("lines", "trusted"),
    [
        (line("box", GOOD), True),
        (line("box", GOOD) + "\n" + line("10.0.0.7", GOOD), True),
        (line("box", GOOD) + "\n" + line("10.0.0.7", BAD), False),
        (line("box", GOOD) + "\n" + line("10.0.0.8", BAD), True),
        (line("10.0.0.7", GOOD), False),
    ],
)
def test_check_host_ip(tmp_path: Path, lines: str, trusted: bool) -> None:
    host = replace(target(tmp_path, lines), check_host_ip=True)
    verify(host, GOOD) if "box" in lines else None  # nobody knows what a jump host dialled
    with contextlib.nullcontext() if trusted else pytest.raises(HostKeyError):
        verify(host, GOOD, "10.0.0.7")


def test_a_command_for_known_hosts_is_said_to_be_unsupported(tmp_path: Path) -> None:
    host = replace(target(tmp_path, line("box", GOOD)), known_hosts_command="/bin/keys %H")
    with pytest.raises(HostKeyError, match="KnownHostsCommand"):
        verify(host, GOOD)
    pinned = target(tmp_path, "", host_key=GOOD.fingerprint)
    verify(replace(pinned, known_hosts_command="/bin/keys %H"), GOOD)


@pytest.mark.parametrize("alias", ["*", "a b", "@revoked", "a,b", "#", "|1|", "!a", "?"])
def test_accept_new_records_no_name_that_means_more(tmp_path: Path, alias: str) -> None:
    host = replace(target(tmp_path, "", host_keys="accept-new"), key_alias=alias)
    with pytest.raises(HostKeyError, match="is not valid in a known_hosts file"):
        verify(host, GOOD)
    assert not (tmp_path / "known").read_text()


def test_accept_new_records_a_name_that_is_not_ascii(tmp_path: Path) -> None:
    host = replace(target(tmp_path, "", host_keys="accept-new"), key_alias="É\udcff")
    verify(host, GOOD)
    assert (tmp_path / "known").read_bytes().startswith("É".encode() + b"\xff ssh-ed25519 ")
    verify(replace(host, options=replace(host.options, host_keys="strict")), GOOD)


def test_a_pipe_is_no_known_hosts_file(tmp_path: Path) -> None:
    host = target(tmp_path, line("box", GOOD))
    os.mkfifo(tmp_path / "pipe")
    verify(replace(host, known_hosts=(*host.known_hosts, str(tmp_path / "pipe"))), GOOD)
    with pytest.raises(HostKeyError, match="not a regular file"):
        verify(replace(host, known_hosts=(str(tmp_path / "pipe"),)), GOOD)


@given(text=st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_no_file_ends_in_anything_but_an_answer(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    host = target(tmp_path_factory.getbasetemp(), "", host_keys="accept-new")
    for name in (*host.known_hosts, str(tmp_path_factory.getbasetemp() / "revoked")):
        Path(name).write_bytes(text)
    host = replace(host, revoked_host_keys=str(tmp_path_factory.getbasetemp() / "revoked"))
    with contextlib.suppress(HostKeyError):
        algorithms(host)
        verify(host, GOOD)
