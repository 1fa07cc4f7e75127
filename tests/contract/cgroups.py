"""Control groups of the tests' own, with limits of memory and processors; of either version."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sshd import wait_for

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited(pid: int, *, memory: int, quota_us: int, above: bool = False) -> Iterator[None]:
    """Keep a process and what it starts within limits, of its group or of the one above."""
    name = f"raycluster-test-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        try:
            for folder, limits in _groups(memory, quota_us):
                group = stack.enter_context(_group(folder / name, limits))
                if above:
                    group = stack.enter_context(_group(group / "below", {}))
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            pytest.skip(f"no control groups can be made here: {error}")
        yield


def _groups(memory: int, quota_us: int) -> Iterator[tuple[Path, dict[str, str]]]:
    if (ROOT / "memory/memory.limit_in_bytes").exists():
        yield ROOT / "memory", {"memory.limit_in_bytes": str(memory)}
        quota = {"cpu.cfs_quota_us": str(quota_us), "cpu.cfs_period_us": "100000"}
        cpu = next(each for each in (ROOT / "cpu", ROOT / "cpu,cpuacct") if each.exists())
        yield cpu, quota
    else:
        (ROOT / "cgroup.subtree_control").write_text("+memory +cpu")
        yield ROOT, {"memory.max": str(memory), "cpu.max": f"{quota_us} 100000"}


@contextlib.contextmanager
def _group(folder: Path, limits: dict[str, str]) -> Iterator[Path]:
    folder.mkdir()
    try:
        for name, value in limits.items():
            (folder / name).write_text(value)
        yield folder
    finally:
        _empty(folder)
        wait_for(lambda: _removed(folder), f"{folder} is empty")


def _empty(folder: Path) -> None:
    """Move what still runs there one level up."""
    for pid in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):  # it has ended
            (folder.parent / "cgroup.procs").write_text(pid)


def _removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # noqa: PTH106
    return not folder.exists()
