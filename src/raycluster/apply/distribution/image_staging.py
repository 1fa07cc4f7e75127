"""A host's folder for image archives on their way to its Docker, and our programs there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import cast

from raycluster.apply.distribution.peer_transfer import TransferPeer, spoken
from raycluster.core.accelerators.values import whole
from raycluster.core.errors import CommandError, HostError, ImageError
from raycluster.core.interfaces import ImageStore, Transport
from raycluster.core.untrusted import Told, not_understood
from raycluster.hosts.fleet import Connected

PIECE = 16 << 20
"""Bytes of an archive that go to a host at once: what a break costs at most."""
PIECE_S = 600.0
"""Seconds for a piece: a way that takes longer is none."""
PROGRAMS = (
    ("raycluster.serve", "transfer.py"),
    ("raycluster.hosts.runtimes", "docker_image_staging.py"),
)
LOOPBACK = "127.0.0.1"

# Somebody else may hold the usual name: then another, which a later run finds again.
_MAKE = """
umask 077
mkdir -p "$1" || exit 1
if [ -n "$(find "$1/" -maxdepth 0 -perm -0002 ! -perm -1000)" ]; then
  echo "others may rename what is in $1" >&2; exit 1
fi
folder=$1/$2
mkdir "$folder" 2>/dev/null || [ -O "$folder" ] && [ -d "$folder" ] && [ ! -L "$folder" ] || {
  folder=$(find "$1/" -maxdepth 1 -type d -user "$(id -u)" -name "$2.????????" | head -n 1)
  [ -n "$folder" ] || folder=$(mktemp -d "$1/$2.XXXXXXXX") || exit 1
}
chmod 700 "$folder" && echo "folder $folder"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && echo python || echo none
"""
_SIZE = """
if [ -f "$1" ]; then echo whole; else wc -c <"$1.raycluster-part" 2>/dev/null || echo 0; fi
"""
_APPEND = """
umask 077
touch "$1.raycluster-part"
[ "$(wc -c <"$1.raycluster-part")" -eq "$2" ] && cat >>"$1.raycluster-part"
"""
_CLOSE = """
cd "$1" && rm -f -- *.py *.json saved.tar* && cd / && rmdir "$1" 2>/dev/null
true
"""
_CLEAR = """
[ -d "$1" ] || exit 0
find "$1/" -maxdepth 1 -type d -user "$(id -u)" \\( -name "$2" -o -name "$2.????????" \\) |
while read -r folder; do rm -rf "$folder" && echo "folder $folder"; done
"""


@dataclass(frozen=True)
class Archive:
    """A file of `docker save`: its bytes and SHA-256, and the layers of the image in it."""

    size: int
    digest: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class StagingArea:
    """A host's folder for archives; `python` tells whether programs of ours can run there."""

    host: Connected
    folder: str
    python: bool

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.host.name

    @property
    def transport(self) -> Transport:
        """The way to the host."""
        return self.host.transport

    def file(self, archive: Archive) -> str:
        """Return where an archive lies."""
        return f"{self.folder}/image-{archive.digest[:16]}.tar"

    def party(self, archive: Archive, *, alone: bool) -> TransferPeer:
        """Return the host as one that takes part in an exchange, or has nobody to serve."""
        item = {"path": self.file(archive), "size": archive.size, "digest": archive.digest}
        path = f"{self.folder}/order.json"

        def deliver(content: bytes) -> None:
            order = {**json.loads(content), "items": [item]}
            order["grows"] = bool(order.get("grows")) and not order["peers"]
            self.transport.put(path, json.dumps(order).encode(), mode=0o600)

        address = LOOPBACK if alone else self.host.address
        argv = self._program("transfer.py", path)
        return TransferPeer(self.name, address, self.transport, argv, {}, deliver)

    def upload(self, path: Path, archive: Archive) -> Iterator[int]:
        """Append to the archive here what it lacks; yield how much is there. Raises HostError."""
        target = self.file(archive)
        said = self.transport.run(("sh", "-c", _SIZE, "size", target)).text.strip()
        if said == "whole":
            return
        here = whole(said, 18)
        if here is None or here > archive.size:
            raise not_understood("the shell", self.name, said)
        with path.open("rb") as file:
            file.seek(here)
            while piece := file.read(PIECE):
                argv = ("sh", "-c", _APPEND, "append", target, str(here))
                done = self.transport.run(argv, input=piece, timeout=PIECE_S)
                if done.exit_code:
                    said = done.error_text
                    raise CommandError(
                        f"cannot write {target}: {said or 'it has changed in the meantime'}",
                        where=self.name,
                        hint="check the free space there, or set distribution.folder to another "
                        "disk",
                        status=done.exit_code,
                    )
                here += len(piece)
                yield here

    def save(self, image: str) -> Iterator[Told]:
        """Let Docker write an image here; the last line has its `size` and `digest`."""
        argv = ("save", store(self.host).socket_path(), f"{self.folder}/saved.tar", image)
        yield from self._said(self._program("docker_image_staging.py", *argv))

    def keep_saved(self, archive: Archive) -> None:
        """Give what was saved its name."""
        self.transport.run(("mv", "-f", f"{self.folder}/saved.tar", self.file(archive)))

    def load(self, archive: Archive) -> None:
        """Give an archive to Docker, and remove it here. Raises ImageError."""
        argv = ("load", store(self.host).socket_path(), self.file(archive))
        for _ in self._said(self._program("docker_image_staging.py", *argv)):
            pass
        self.remove(archive)

    def remove(self, archive: Archive) -> None:
        """Remove an archive here."""
        self.transport.run(("rm", "-f", self.file(archive)))

    def close(self) -> None:
        """Remove our programs; what a later run can go on with stays."""
        self.transport.run(("sh", "-c", _CLOSE, "close", self.folder))

    def _program(self, name: str, *arguments: str) -> tuple[str, ...]:
        return ("python3", "-I", f"{self.folder}/{name}", *arguments)

    def _said(self, argv: Sequence[str]) -> Iterator[Told]:
        with closing(spoken(self.transport, argv, {})) as lines:
            for line in lines:
                if "error" in line:
                    raise ImageError(line["error"].text(2000), where=self.name)
                yield line


def store(connected: Connected) -> ImageStore:
    """Return the runtime of a host that is known to keep images."""
    return cast(ImageStore, connected.runtime)


def open_staging(connected: Connected, base: str, cluster: str) -> StagingArea:
    """Make a host's folder, with our programs in it. Raises HostError."""
    transport = connected.transport
    done = transport.run(("sh", "-c", _MAKE, "make", *_place(transport, base, cluster)))
    told = re.fullmatch(r"folder (/.*)\n(python|none)", done.text)
    if done.exit_code or not told:
        said = done.error_text
        raise HostError(
            f"cannot create a folder for images in {base}: {said}",
            where=connected.host.name,
            hint="set distribution.folder to a folder that the user can write to",
        )
    folder = told[1]
    area = StagingArea(connected, folder, told[2] == "python")
    for package, program in PROGRAMS if area.python else ():
        content = (resources.files(package) / program).read_bytes()
        transport.put(f"{folder}/{program}", content, mode=0o600)
    return area


def clear_staging(connected: Connected, base: str, cluster: str) -> tuple[str, ...]:
    """Remove what an interrupted run has left on a host, and return it."""
    place = _place(connected.transport, base, cluster)
    done = connected.transport.run(("sh", "-c", _CLEAR, "clear", *place))
    return tuple(line for line in done.text.splitlines() if line.startswith("folder /"))


def _place(transport: Transport, base: str, cluster: str) -> tuple[str, str]:
    """Return the base and the usual name of the folder of this user and cluster in it."""
    user = transport.run(("id", "-u")).text.strip()
    if whole(user, 10) is None:
        raise not_understood("`id -u`", "", user)
    return base.rstrip("/") or "/", f"raycluster-{user}-{cluster}"
