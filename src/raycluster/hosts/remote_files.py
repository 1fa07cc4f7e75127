"""Writes files into a node."""

from __future__ import annotations

from collections.abc import Mapping

from raycluster.core.errors import (
    CommandError,
)
from raycluster.core.interfaces import (
    PYTHON,
    Shell,
    file_mode,
)


def push_files(shell: Shell, files: Mapping[str, bytes]) -> None:
    """Write files under the cluster's folder of a running process. Raises HostError."""
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), file_mode(content)
            tar.addfile(info, io.BytesIO(content))
    done = shell.run((*PYTHON, "-c", _UNPACK), input=packed.getvalue())
    if done.exit_code != 0:
        raise CommandError(
            f"cannot write files: {done.error_text}",
            status=done.exit_code,
        )


def push_live(shell: Shell, files: Mapping[str, bytes]) -> None:
    """Write files under the cluster's folder of any running process. Raises HostError."""
    for path, content in files.items():
        done = shell.run(("sh", "-c", _REPLACE, path), input=content)
        if done.exit_code != 0:
            raise CommandError(
                f"cannot write {path}: {done.error_text}",
                status=done.exit_code,
            )


_REPLACE = 'umask 077; cd "$RAYCLUSTER_ROOT" && cat >"$0.new" && mv -f "$0.new" "$0"'
_UNPACK = """
import os, sys, tarfile
root = os.environ["RAYCLUSTER_ROOT"]
os.umask(0o077)
for member in (tar := tarfile.open(fileobj=sys.stdin.buffer, mode="r|")):
    path = os.path.join(root, member.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "wb") as out:
        out.write(tar.extractfile(member).read())
    os.chmod(path + ".new", member.mode)
    os.replace(path + ".new", path)
"""
