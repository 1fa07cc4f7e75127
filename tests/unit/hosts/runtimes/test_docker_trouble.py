"""Why a host's Docker does not respond, by what its shell saw."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from raycluster.hosts.runtimes.docker_socket import DEFAULT, SocketChoice
from raycluster.hosts.runtimes.docker_trouble import LOOK, ShellFacts, explain, seen

BASE = "user jane\nuid 1000\ngroups 1000 27\naccount 1000 27\nlocal\n"
SOCKET = f"{BASE}client\nexists\nsocket\n"
UNITS = "unit docker.socket LoadState=loaded ActiveState=active Result=success\n"
STOPPED = "unit docker.service LoadState=loaded ActiveState=inactive Result=success\n"
FAILED = "unit docker.service LoadState=loaded ActiveState=failed Result=exit-code\n"
ABSENT = "unit docker.service LoadState=not-found ActiveState=inactive Result=success\n"
GROUP = "owner 999 660 root:docker\n"


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        (BASE, "Docker is not installed", "install Docker Engine"),
        (f"{BASE}{ABSENT}", "Docker is not installed", "install Docker Engine"),
        (f"{BASE}podman\n", "podman is, but cannot", "install Docker Engine"),
        (f"{BASE}client\n", "docker command is installed, but not the daemon", "[runtime] socket"),
        (f"{BASE}client\n{STOPPED}", "not running", "`sudo systemctl enable --now docker`"),
        (f"{BASE}daemon /usr/bin/dockerd\n", "not running", "`sudo dockerd`"),
        (f"{BASE}client\nrootless\n", "rootless Docker is not", "`systemctl --user enable --now"),
        (f"{BASE}{FAILED}", "fails to start (docker.service: exit-code)", "journalctl -u docker"),
        (
            f"{BASE}unit snap.docker.dockerd.service LoadState=loaded ActiveState=inactive\n",
            "not running",
            "snap start --enable docker",
        ),
        (f"{BASE}closed /run/secret\n", "user jane has no access to /run/secret", "log in as"),
        (f"{BASE}exists\n", "is not a socket", "set Docker's socket"),
        (f"{SOCKET}{GROUP}", "it is reserved for group docker", "`sudo usermod -aG docker jane`"),
        (
            f"{SOCKET}owner 990 660 root:containers\n",
            "it is reserved for group containers",
            "`sudo usermod -aG containers jane`",
        ),
        (
            f"{SOCKET}owner 990 660 root:domain users\n",
            "it is reserved for group domain users",
            "`sudo usermod -aG 'domain users' jane`",
        ),
        (
            f"{SOCKET}owner 990 660 root:$(reboot)\n",
            "has no permission to use Docker",
            "check the socket's group",
        ),
        (f"{SOCKET}owner 999 600 root:docker\n", "only root has", "log in as that user"),
        (f"{SOCKET}owner 0 660 root:root\n", "belongs to group root", "groupadd --force docker"),
        (
            (SOCKET + GROUP).replace("account 1000 27", "account 1000 27 999"),
            "older than the membership in group docker",
            "log in again",
        ),
        (
            (SOCKET + GROUP).replace("groups 1000 27", "groups 1000 27 999"),
            "although in its group docker",
            "SELinux",
        ),
        (f"{SOCKET}writable\ntried 1 Cannot connect\n", "nothing responds", "systemctl restart"),
        (f"{SOCKET}writable\ntried 124 \n", "hangs", "systemctl restart docker"),
        (
            f"{SOCKET}writable\n{UNITS}{FAILED}tried 1 EOF\n",
            "docker.service: exit-code); only systemd holds",
            "journalctl -u docker",
        ),
        (
            f"{SOCKET}writable\nselinux Enforcing\ntried 1 connect: permission denied\n",
            "is rejected: connect: permission denied",
            "SELinux is enforcing",
        ),
    ],
)
def test_the_reason_and_the_next_step(text: str, what: str, hint: str) -> None:
    found = explain(seen(text), SocketChoice(DEFAULT))
    assert found
    assert what in found[0]
    assert hint in found[1]
    assert "native" in found[1] or "is not a socket" in what


@pytest.mark.parametrize(
    ("user", "local", "hint"),
    [
        ("jane", True, "sudo usermod -aG docker jane`"),
        ("jane", False, "sudo gpasswd -a jane docker`"),
        ("ACME\\jane", False, "sudo gpasswd -a 'ACME\\jane' docker`"),
        ("jane@acme.org", False, "sudo gpasswd -a jane@acme.org docker`"),
        ("ACME\\Jane Doe", False, "sudo gpasswd -a 'ACME\\Jane Doe' docker`"),
        ("$(reboot)", True, "sudo usermod -aG docker USER`"),
        ("-x", True, "sudo usermod -aG docker USER`"),
        ("", True, "sudo usermod -aG docker USER`"),
    ],
)
def test_a_users_name_is_one_word_of_a_command_or_left_open(
    user: str, local: bool, hint: str
) -> None:
    text = (SOCKET + GROUP).replace("user jane", f"user {user}")
    found = explain(seen(text if local else text.replace("local\n", "")), SocketChoice(DEFAULT))
    assert found
    assert hint in found[1]


def test_a_word_that_is_no_account_of_the_host_is_no_name() -> None:
    text = (SOCKET + GROUP).replace("user jane", "user Welcome").replace("account 1000 27\n", "")
    found = explain(seen(text), SocketChoice(DEFAULT))
    assert found
    assert found[0].startswith("the login user has no permission to use Docker")
    assert "usermod -aG docker USER`" in found[1]


def test_what_names_the_socket_and_what_is_there_besides_are_said() -> None:
    place = SocketChoice("/srv/d.sock", "DOCKER_HOST of its login", ("/run/user/1000/docker.sock",))
    found = explain(seen(BASE), place)
    assert found
    assert "there is no /srv/d.sock, which DOCKER_HOST of its login names" in found[0]
    assert '[runtime] socket = "/run/user/1000/docker.sock"' in found[1]


@pytest.mark.parametrize("text", ["", "Welcome\n", f"{SOCKET}writable\n", "tried 0 20.10\n"])
def test_what_was_not_seen_is_no_reason(text: str) -> None:
    assert explain(seen(text), SocketChoice(DEFAULT)) is None


def test_what_is_not_of_the_asked_shape_is_left_out() -> None:
    told = seen("uid x\ngroups a b\nowner 999 9999 root:docker\nunit what\ntried soon\n")
    assert told == ShellFacts(uid="x", facts=frozenset({"uid", "groups", "owner", "unit", "tried"}))


def test_the_script_tells_of_a_socket_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "a b'$(x)/docker.sock")
    done = subprocess.run(("sh", "-c", LOOK, "sh", path), capture_output=True, check=True)
    told = seen(done.stdout.decode())
    assert told.uid.isdecimal()
    assert told.groups
    assert not {"exists", "socket", "writable", "closed"} & told.facts
