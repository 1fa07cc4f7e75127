"""Whether a host is the one that is known: our decision beside that of OpenSSH's client."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from raycluster.core.errors import HostKeyError
from raycluster.hosts.transports.ssh import SshOptions, pinned_key
from raycluster.hosts.transports.ssh_command import command_line
from raycluster.hosts.transports.ssh_hostkeys import ALGORITHMS, HostKey, algorithms, verify
from raycluster.hosts.transports.ssh_target import resolve
from tests.contract.sshd import SSHD, Sshd

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="needs OpenSSH's server and client"
)

KINDS = {"E": "ssh-ed25519", "C": "ecdsa-sha2-nistp256", "R": "ssh-rsa"}
UNSUPPORTED = "host certificates are not supported"
UNREADABLE = "could not be read"
REVOKED = "is revoked by"
KRL = "a binary list (KRL), which is not supported"


@dataclass
class Case:
    """What a person has: known_hosts files, an ssh config, a policy; `{E}` is a key of the host's.

    `{e}` is another key of the same kind, `{name}` and `{bare}` are the host with its port and
    without. `krl` are keys in a binary list; `stricter` is what we say where we refuse and
    ssh does not.
    """

    known: str | bytes = ""
    config: str = ""
    policy: str = "strict"
    second: str = ""
    everybodys: str = ""
    revoked: str = ""
    krl: str = ""
    stricter: str = ""


@dataclass
class Place:
    """A server with three keys, other keys, and a folder for files."""

    server: Sshd
    folder: Path
    words: dict[str, str] = field(default_factory=dict)

    def text(self, template: str | bytes) -> bytes:
        """Fill a template in; bytes stay as they are but for `{...}`."""
        raw = template if isinstance(template, bytes) else template.encode("latin-1")
        for name, value in self.words.items():
            raw = raw.replace(b"{%s}" % name.encode(), value.encode())
        return raw

    def hashed(self, name: str) -> str:
        """Return a name as `ssh-keygen -H` writes it."""
        salt = os.urandom(20)
        digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
        return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def public(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    """Return a key as a line of a file holds it."""
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*form).decode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Yield a running server of ours and the keys that tests write into files."""
    folder = tmp_path_factory.mktemp("known")
    server = Sshd(folder / "sshd", host_keys=("ed25519", "ecdsa", "rsa")).start()
    made = Place(server, folder)
    for letter, kind in zip("ECR", server.host_keys, strict=True):
        text = (server.folder / f"host_{kind}.pub").read_text()
        made.words[letter] = " ".join(text.split()[:2])
    made.words |= {
        "e": public(ed25519.Ed25519PrivateKey.generate()),
        "c": public(ec.generate_private_key(ec.SECP256R1())),
        "r": public(rsa.generate_private_key(65537, 2048)),
        "name": f"[127.0.0.1]:{server.port}",
        "bare": "127.0.0.1",
        "port": str(server.port),
        "hashed": made.hashed(f"[127.0.0.1]:{server.port}"),
        "hashed_bare": made.hashed("127.0.0.1"),
        "hashed_other": made.hashed("127.0.0.2"),
    }
    made.words |= {f"{letter}_base64": made.words[letter].split()[1] for letter in "ERr"}
    yield made
    server.stop()


def both(place: Place, name: str, case: Case) -> tuple[tuple[str, bool], tuple[str, bool], str]:
    """Return (kind of the key shown, whether it is trusted) of ours and of ssh, and our words."""
    folder = place.folder / re.sub(r"\W", "_", name)
    folder.mkdir()
    files = {"known": case.known, "second": case.second, "everybodys": case.everybodys}
    content = {key: place.text(text) for key, text in files.items()}
    (folder / "revoked").write_bytes(place.text(case.revoked))
    if case.krl:
        (folder / "keys").write_bytes(place.text(case.krl))
        make = ("ssh-keygen", "-q", "-k", "-f", str(folder / "revoked"), str(folder / "keys"))
        subprocess.run(make, check=True)
    config = (
        place.text(case.config.replace("{folder}", str(folder))).decode("utf-8", "surrogateescape")
        + f"\nHost *\nHostName 127.0.0.1\nPort {place.server.port}\nUser nobody\n"
        + f"UserKnownHostsFile {folder}/known {folder}/second\n"
        + f"GlobalKnownHostsFile {folder}/everybodys\nUpdateHostKeys no\n"
        + "BatchMode yes\nPreferredAuthentications none\n"
    )
    (folder / "config").write_bytes(config.encode("utf-8", "surrogateescape"))
    options = SshOptions("box", host_keys=case.policy, config_file=str(folder / "config"))  # type: ignore[arg-type]
    found = []
    for decide in (openssh, ours):
        for key, text in content.items():
            (folder / key).write_bytes(text)
        found.append(decide(place, options))
    (theirs, _), (mine, said) = found
    return mine, theirs, said


def openssh(place: Place, options: SshOptions) -> tuple[tuple[str, bool], str]:
    """Let ssh connect; nobody can log in, so that it ends after the host's key was judged."""
    command = [*command_line(options)]
    done = subprocess.run(
        [command[0], "-v", *command[1:], "true"], capture_output=True, check=False
    )
    said = done.stderr.decode("utf-8", "replace")
    shown = re.search(r"kex: host key algorithm: (\S+)", said)
    assert shown, said
    trusted = "Permission denied" in said
    refused = "Host key verification failed" in said or "Bad server host key" in said
    assert trusted is not refused, said
    return (ALGORITHMS[shown[1]], trusted), said


def ours(place: Place, options: SshOptions) -> tuple[tuple[str, bool], str]:
    """Decide about the key that the server shows for what is offered: the first that it has."""
    target = resolve("gpu-1", options)
    shown = ALGORITHMS[algorithms(target)[0]]
    kept = next(text for text in place.words.values() if text.startswith(f"{shown} "))
    key = HostKey(shown, base64.b64decode(kept.split()[1]))
    try:
        verify(target, key, "127.0.0.1")
    except HostKeyError as error:
        return (shown, False), str(error)
    return (shown, True), ""


CASES = {
    "nothing": Case(),
    "nothing, accept-new": Case(policy="accept-new"),
    "known": Case("{name} {E}\n"),
    "known, accept-new": Case("{name} {E}\n", policy="accept-new"),
    "known in the second file": Case(second="{name} {E}\n"),
    "known to everybody": Case(everybodys="{name} {E}\n"),
    "known without port": Case("{bare} {E}\n"),
    "changed": Case("{name} {e}\n"),
    "changed, accept-new": Case("{name} {e}\n", policy="accept-new"),
    "changed without port": Case("{bare} {e}\n"),
    "changed without port, accept-new": Case("{bare} {e}\n", policy="accept-new"),
    "changed with port, known without": Case("{name} {e}\n{bare} {E}\n"),
    "the same by hash": Case("{hashed} {e}\n{hashed_bare} {E}\n"),
    "the same over two files": Case("{bare} {E}\n", everybodys="{name} {e}\n"),
    "the same by patterns": Case("127.0.0.* {E}\n[127.0.0.*]:* {e}\n"),
    "the same, accept-new": Case("{name} {e}\n{bare} {E}\n", policy="accept-new"),
    "known with port, changed without": Case("{bare} {e}\n{name} {E}\n"),
    "another kind with port, known without": Case("{bare} {E}\n{name} {r}\n"),
    "an authority with port, known without": Case("{bare} {E}\n@cert-authority {name} {e}\n"),
    "one of two": Case("{name} {e}\n{name} {E}\n"),
    "one of two, in two files": Case("{name} {e}\n", everybodys="{name} {E}\n"),
    "another kind": Case("{name} {r}\n"),
    "another kind, accept-new": Case("{name} {r}\n", policy="accept-new"),
    "the host's RSA key alone": Case("{name} {R}\n"),
    "the host's RSA key without port": Case("{bare} {R}\n"),
    "RSA before ECDSA": Case("{name} {R}\n{name} {C}\n"),
    "all three": Case("{name} {R}\n{name} {C}\n{name} {E}\n"),
    "RSA and another ed25519": Case("{name} {R}\n{name} {e}\n"),
    "RSA and a revoked ed25519": Case("{name} {R}\n{name} {E}\n@revoked {name} {E}\n"),
    "RSA, and ed25519 without port": Case("{name} {R}\n{bare} {e}\n"),
    "hashed": Case("{hashed} {E}\n"),
    "hashed without port": Case("{hashed_bare} {E}\n"),
    "hashed, changed": Case("{hashed} {e}\n", policy="accept-new"),
    "hashed, another": Case("{hashed_other} {E}\n"),
    "hashed and a name": Case("{hashed},{name} {E}\n"),
    "a hash of another kind and a name": Case("|2|x|y,{name} {E}\n"),
    "no hash, and a name": Case("|,{name} {E}\n"),
    "a hash with a short salt": Case("|1|YQ==|YQ== {E}\n"),
    "a hash that is not base64": Case("|1|\xe9\xe9|\xe9 {E}\n"),
    "pattern": Case("[127.0.?.*]:* {E}\n"),
    "pattern without port": Case("127.* {E}\n"),
    "pattern with a negation": Case("*,!{name} {E}\n"),
    "negation without port": Case("*,!{bare} {E}\n"),
    "negation alone": Case("!{name} {E}\n"),
    "negation of another": Case("!other,{name} {E}\n"),
    "all hosts": Case("* {E}\n"),
    "all hosts, changed": Case("* {e}\n", policy="accept-new"),
    "several names": Case("other,{name},third {E}\n"),
    "an empty name among them": Case(",,{name}, {E}\n"),
    "brackets are no set of characters": Case("[[]127.0.0.1]:{port} {E}\n"),
    "a pattern that is too long": Case("x" * 1100 + ",{name} {E}\n"),
    "a long pattern": Case("x" * 1000 + ",{name} {E}\n"),
    "many stars": Case("*1" * 40 + "x,{name} {E}\n"),
    "revoked": Case("{name} {E}\n@revoked {name} {E}\n"),
    "revoked for all": Case("{name} {E}\n@revoked * {E}\n"),
    "revoked by hash": Case("{name} {E}\n@revoked {hashed} {E}\n"),
    "revoked to everybody": Case("{name} {E}\n", everybodys="@revoked * {E}\n"),
    "revoked, accept-new": Case("@revoked {name} {E}\n", policy="accept-new"),
    "revoked for another": Case("{name} {E}\n@revoked other {E}\n"),
    "another is revoked": Case("{name} {E}\n@revoked * {e}\n"),
    "another is revoked, accept-new": Case("@revoked * {e}\n", policy="accept-new"),
    "revoked without port": Case("@revoked {bare} {E}\n{name} {E}\n", stricter=REVOKED),
    "revoked without port, known without": Case("@revoked {bare} {E}\n{bare} {E}\n"),
    "revoked without port, accept-new": Case(
        "@revoked {bare} {E}\n", policy="accept-new", stricter=REVOKED
    ),
    "revoked after a tab": Case("{name} {E}\n@revoked\t{name} {E}\n", stricter=REVOKED),
    "revoked with the name of a signature": Case(
        "{name} {R}\n@revoked * rsa-sha2-512 {R_base64}\n"
    ),
    "an authority": Case("@cert-authority * {e}\n"),
    "an authority, accept-new": Case(
        "@cert-authority * {e}\n", policy="accept-new", stricter=UNSUPPORTED
    ),
    "an authority and the key": Case("@cert-authority * {e}\n{name} {E}\n"),
    "an authority that is the key": Case("@cert-authority * {E}\n"),
    "an unknown marker": Case("@strange {name} {E}\n"),
    "two markers": Case("@revoked @cert-authority {name} {E}\n"),
    "an unknown marker, accept-new": Case(
        "@strange {name} {e}\n", policy="accept-new", stricter=UNREADABLE
    ),
    "CRLF": Case("{name} {E}\r\n# x\r\n\r\n{bare} {e}\r\n"),
    "CRLF, changed": Case("{name} {e}\r\n", policy="accept-new"),
    "CR alone": Case("# x\r{name} {E}\r"),
    "a comment after the key": Case("{name} {E} someone@somewhere # more\n"),
    "spaces and tabs": Case(" \t {name} \t {E}  \n"),
    "a comment": Case("#{name} {E}\n"),
    "a comment after spaces": Case("   # {name} {E}\n"),
    "no line end": Case("{name} {E}"),
    "not ASCII": Case(b"{name} {E} \xc3\xa9\xff\n\xff\xfe \xc3\xa9 \xff\n"),
    "not ASCII, a name": Case(b"\xc3\xa9\xff,{name} {E}\n"),
    "not ASCII, a key": Case(b"{name} ssh-ed25519 \xc3\xa9\n{name} {E}\n"),
    "a space that is not ASCII": Case(b"{name}\xa0{E}\n"),
    "other spaces": Case("{name}\v{E}\n"),
    "a form feed in the key": Case("{name} {E}\f\n"),
    "a line of Unicode": Case("# x\u0085{name} {E}\n".encode("latin-1")),
    "a zero byte": Case(b"{name} {E}\0x\n"),
    "a zero byte after the name": Case(b"{name}\0 {E}\n", stricter=UNREADABLE),
    "a zero byte in a comment": Case(b"#\0\n{name} {E}\n"),
    "no key": Case("{name}\n{name} ssh-ed25519\n{name} {E}\n"),
    "no key, accept-new": Case("{name} ssh-ed25519\n", policy="accept-new", stricter=UNREADABLE),
    "a damaged key, accept-new": Case("{name} {E}=\n", policy="accept-new", stricter=UNREADABLE),
    "a damaged key of another host, accept-new": Case("x {E}=\n", policy="accept-new"),
    "another kind before the key": Case("{name} ssh-rsa {E_base64}\n"),
    "the name of a signature before the key": Case("{name} rsa-sha2-256 {R_base64}\n"),
    "the same, changed": Case("{name} rsa-sha2-256 {r_base64}\n", policy="accept-new"),
    "an old line": Case("{name} 1024 35 1234567\n{name} {E}\n"),
    "alias": Case("one {E}\n", "HostKeyAlias one"),
    "alias in capitals": Case("ONE {E}\n", "HostKeyAlias oNe"),
    "alias, changed": Case("one {e}\n{name} {E}\n{bare} {E}\n", "HostKeyAlias one"),
    "alias, new": Case("{name} {e}\n", "HostKeyAlias one", "accept-new"),
    "alias not in ASCII": Case(b"\xc3\xa9 {E}\n", "HostKeyAlias \xc3\xa9"),
    "a byte for a question mark": Case(b"? {E}\n", "HostKeyAlias \xc3\xa9"),
    "two bytes for two": Case(b"?? {E}\n", "HostKeyAlias \xc3\xa9"),
    "capitals that are not ASCII": Case(b"\xc3\xa9 {E}\n", "HostKeyAlias \xc3\x89"),
    "RevokedHostKeys": Case("{name} {E}\n", "RevokedHostKeys {folder}/revoked", revoked="{E} x\n"),
    "RevokedHostKeys, accept-new": Case(
        "", "RevokedHostKeys {folder}/revoked", "accept-new", revoked="# x\n\n{r}\r\n {E}\n"
    ),
    "RevokedHostKeys of others": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/revoked", revoked="{e}\n{r}\n"
    ),
    "RevokedHostKeys, empty": Case("{name} {E}\n", "RevokedHostKeys {folder}/revoked"),
    "RevokedHostKeys, damaged": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/revoked", revoked="{e}=\n"
    ),
    "RevokedHostKeys, lines of known_hosts": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/revoked", revoked="{name} {e}\n"
    ),
    "RevokedHostKeys, missing": Case("{name} {E}\n", "RevokedHostKeys {folder}/none"),
    "RevokedHostKeys, a folder": Case("{name} {E}\n", "RevokedHostKeys {folder}"),
    "RevokedHostKeys, binary": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/revoked", krl="{E}\n"
    ),
    "RevokedHostKeys, binary, of others": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/revoked", krl="{e}\n", stricter=KRL
    ),
    "RevokedHostKeys none": Case("{name} {E}\n", "RevokedHostKeys none"),
    "RevokedHostKeys with a variable": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/${RAYCLUSTER_TEST}", revoked="{E}\n"
    ),
    "RevokedHostKeys, others by a variable": Case(
        "{name} {E}\n", "RevokedHostKeys {folder}/${RAYCLUSTER_TEST}", revoked="{e}\n"
    ),
    "RequiredRSASize": Case("{name} {R}\n", "RequiredRSASize 8192"),
    "RequiredRSASize, ed25519": Case("{name} {E}\n", "RequiredRSASize 8192"),
    "HostKeyAlgorithms": Case("{name} {E}\n{name} {r}\n", "HostKeyAlgorithms rsa-sha2-512"),
    "HostKeyAlgorithms, others": Case("{name} {R}\n", "HostKeyAlgorithms -ssh-ed25519,rsa*-256"),
    "HostKeyAlgorithms, first": Case("{name} {E}\n", "HostKeyAlgorithms ^rsa-sha2-256"),
    "HostKeyAlgorithms, a list": Case(
        "{name} {E}\n", "HostKeyAlgorithms rsa-sha2-512,ssh-ed25519,ecdsa*"
    ),
    "HostKeyAlgorithms, less": Case("{name} {E}\n{name} {R}\n", "HostKeyAlgorithms -ecdsa*,*ed*"),
    "HostKeyAlgorithms, first, unknown": Case("", "HostKeyAlgorithms ^ecdsa*"),
    "HostKeyAlgorithms, first, all known": Case(
        "{name} {E}\n{name} {R}\n{name} {C}\n", "HostKeyAlgorithms ^ecdsa*"
    ),
    "HostKeyAlgorithms, more": Case("{name} {R}\n", "HostKeyAlgorithms +ssh-rsa"),
    "CheckHostIP here": Case("one {E}\n{name} {e}\n", "HostKeyAlias one\nCheckHostIP no"),
    "UserKnownHostsFile none": Case("{name} {E}\n", "UserKnownHostsFile none"),
    "GlobalKnownHostsFile none": Case("", "GlobalKnownHostsFile none", everybodys="{name} {E}\n"),
    "StrictHostKeyChecking of the config": Case("", "StrictHostKeyChecking no"),
    "a known_hosts file that is a folder": Case("{name} {E}\n", "GlobalKnownHostsFile {folder}"),
    "the folder, accept-new": Case(
        "", "GlobalKnownHostsFile {folder}", "accept-new", stricter=UNREADABLE
    ),
}

NAMES = (
    "{name}", "{name}", "{bare}", "{bare}", "{hashed}", "{hashed_bare}", "{hashed_other}",
    "*", "127.*", "[127.*]:*", "*,!{name}", "*,!{bare}", "!{name},{bare}", "{name},{bare}",
    "one", "ONE,x", "\xe9", "|2|x|y,{name}", "|1|x|{name}",
)  # fmt: skip
KEYS = (
    "{E}", "{E}", "{C}", "{R}", "{e}", "{c}", "{r}", "rsa-sha2-512 {R_base64}",
    "ssh-rsa {E_base64}", "rsa-sha2-256 {r_base64}", "{E}=", "ssh-ed25519 \xe9", "",
)  # fmt: skip
MARKERS = (*[""] * 7, "@revoked ", "@revoked ", "@cert-authority ", "@other ", "#", " \t", "\v")
ENDS = ("\n", "\n", "\r\n", " x y\n", "\t\xe9\n", "\r", "\0\n", "\f\n", "\x85\n")
CONFIGS = (
    *[""] * 6, "HostKeyAlias one", "HostKeyAlias ONE", "HostKeyAlgorithms ^ecdsa*",
    "HostKeyAlgorithms rsa-sha2-512,ssh-ed25519", "HostKeyAlgorithms -ssh-ed25519",
    "RequiredRSASize 4096", "RevokedHostKeys {folder}/revoked", "RevokedHostKeys none",
    "GlobalKnownHostsFile none", "UserKnownHostsFile {folder}/second",
)  # fmt: skip


def lines(dice: random.Random, most: int) -> str:
    """Return a known_hosts file of whatever comes."""
    return "".join(
        dice.choice(MARKERS) + dice.choice(NAMES) + dice.choice(" \t") + dice.choice(KEYS)
        + dice.choice(ENDS)
        for _ in range(dice.randint(0, most))
    )  # fmt: skip


def generated(seed: int) -> Case:
    """Return a case by chance."""
    dice = random.Random(seed)
    return Case(
        known=lines(dice, 4),
        config=dice.choice(CONFIGS),
        policy=dice.choice(("strict", "accept-new")),
        second=lines(dice, 2) if dice.random() < 0.3 else "",
        everybodys=lines(dice, 2) if dice.random() < 0.3 else "",
        revoked="".join(dice.choice(KEYS[:7]) + "\n" for _ in range(dice.randint(0, 2))),
    )


@pytest.fixture(scope="module")
def decided(place: Place) -> Iterator[dict[str, tuple[tuple[str, bool], tuple[str, bool], str]]]:
    """Decide all cases, some at once: a connection is mostly waiting."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setenv("RAYCLUSTER_TEST", "revoked")
        found = pool.map(lambda item: both(place, *item), CASES.items())
        yield dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_is_decided_as_openssh_decides(
    name: str, decided: dict[str, tuple[object, ...]]
) -> None:
    ours, theirs, said = decided[name]
    stricter = CASES[name].stricter
    assert isinstance(theirs, tuple)
    if stricter:
        assert theirs[1]
        assert ours == (theirs[0], False)
        assert stricter in str(said)
    else:
        assert ours == theirs, said


@pytest.mark.parametrize(
    ("known", "shown"),
    [("{name} {E}", "E"), ("{name} {C}", "C"), ("{name} {R}", "R"), ("{name} {C}\n* {E}", "E")],
)
def test_a_host_is_asked_for_a_key_that_it_is_known_by(
    place: Place, tmp_path: Path, known: str, shown: str
) -> None:
    (tmp_path / "known").write_bytes(place.text(known))
    options = place.server.options(known_hosts=str(tmp_path / "known"))
    assert pinned_key("gpu-1", options) == place.words[shown]


FIRST_SEED = int(os.environ.get("RAYCLUSTER_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("RAYCLUSTER_CASES", "60")))


def test_whatever_the_files_say_nobody_gets_in_whom_openssh_refuses(place: Place) -> None:
    """With RAYCLUSTER_CASES=5000 in the environment it looks at more."""
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda seed: both(place, f"seed{seed}", generated(seed)), SEEDS)
        for seed, (ours, theirs, said) in zip(SEEDS, found, strict=True):
            assert ours[0] == theirs[0], seed
            stricter = theirs[1] and any(w in said for w in (UNSUPPORTED, UNREADABLE, REVOKED))
            assert ours[1] == theirs[1] or stricter, (seed, generated(seed), said)
