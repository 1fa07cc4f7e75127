"""A Docker daemon of the tests' own, in its own namespaces, with one tiny image. Needs root."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycluster.core.interfaces import Volume

IMAGE = "raycluster-test:1"
USER_ID, GROUP_ID = 1234, 1235
USR = Volume("/usr", "/usr", read_only=True)
"""The image has no programs: they are this machine's."""

_FOLDERS = ("usr", "sbin", "tmp", "etc", "proc", "sys", "dev", "run", "home/app")
_LINKS = ("bin", "lib", "lib64")
_FILES = {
    "etc/passwd": f"root:x:0:0::/root:/bin/sh\napp:x:{USER_ID}:{GROUP_ID}::/home/app:/bin/sh\n",
    "etc/group": f"root:x:0:\napp:x:{GROUP_ID}:\n",
}


@contextlib.contextmanager
def docker_daemon(folder: Path, beside: str = "", options: tuple[str, ...] = ()) -> Iterator[str]:
    """Run dockerd with all its files in `folder`; yield its socket's path.

    `beside` is a shell command for a server that shares its network, which has no way out;
    `options` are further ones of dockerd.
    """
    for reason in _lacks():
        pytest.skip(reason)
    socket = folder / "docker.sock"
    files = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    daemon = shlex.join(
        [
            *("dockerd", "--host", f"unix://{socket}"),
            *(f"--{option}={folder}/{name}" for option, name in files.items()),
            *("--iptables=false", "--bridge=none", "--storage-driver=vfs"),
            *options,
        ]
    )
    script = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && "
        f"{f'({beside} & ) && ' if beside else ''}{daemon}"
    )
    apart = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            (*apart, "sh", "-c", f"{script} & wait"), stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            _wait_until_it_answers(process, str(socket), folder / "log")
            docker_cli(str(socket), "import", "--change=USER app", "-", IMAGE, input=_root())
            yield str(socket)
        finally:
            process.kill()  # unshare ignores TERM; its child, and all in its namespace, die with it
    shutil.rmtree(folder, ignore_errors=True)


def docker_cli(socket: str, *arguments: str, input: bytes = b"") -> str:
    """Run Docker's own command line, to look at what we made from another side."""
    done = subprocess.run(
        ("docker", "--host", f"unix://{socket}", *arguments),
        input=input,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _lacks() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "needs root, to start a Docker daemon apart from this machine's"
    if not all(map(shutil.which, ("dockerd", "docker", "unshare", "ip"))):
        yield "needs dockerd, docker, unshare and ip"


def _wait_until_it_answers(process: subprocess.Popen[bytes], socket: str, log: Path) -> None:
    end = time.monotonic() + 120
    ping = ("docker", "--host", f"unix://{socket}", "version")
    while subprocess.run(ping, capture_output=True, check=False).returncode:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"dockerd did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _root() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in _FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        for name in _LINKS:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name, text in _FILES.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(text), 0o644
            tar.addfile(file, io.BytesIO(text.encode()))
    return made.getvalue()
