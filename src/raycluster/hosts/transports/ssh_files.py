"""Reads the files that a person keeps for SSH."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST = 16 << 20


def read_file(path: str | Path) -> bytes:
    """Return a file's bytes, none for the null device, without ever waiting for them.

    Raises OSError, also for a pipe, a device, a name that no file can have, and above 16 MiB.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "this is not a valid file name")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(mode) and str(path) != os.devnull:
            raise OSError(errno.EINVAL, "is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:  # a descriptor
            content = file.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"is larger than {LARGEST >> 20} MiB")
    return content
