"""known_hosts files: which lines are about a host, and what they decide."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from raycluster.errors import HostKeyError
from raycluster.transports.ssh_hostkeys import HostKey, known_hosts, verify
from raycluster.transports.ssh_options import SshOptions
from raycluster.transports.ssh_target import Target, resolve


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


def target(tmp_path: Path, text: str, host: str = "box", port: int = 22, **more: str) -> Target:
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


def test_known_kinds_are_asked_for_first(tmp_path: Path) -> None:
    text = f"{line('box', key(1, 'ssh-rsa'))}\n{line('box', GOOD)}\n@revoked {line('box', BAD)}"
    assert known_hosts(target(tmp_path, text)).kinds == ("ssh-rsa", "ssh-ed25519")
