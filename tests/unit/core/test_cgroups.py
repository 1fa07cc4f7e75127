"""What control groups leave of a host, as a real shell reads it from made-up file systems."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from raycluster.core import cgroups
from raycluster.core.accelerators.host import by_word
from raycluster.core.cgroups import Limits
from raycluster.state.free_capacity import Memory, limited

GIB = 1 << 30
MACHINE = {
    "proc/meminfo": f"MemTotal: {24 << 20} kB\nMemFree: 1 kB\nMemAvailable: {20 << 20} kB\n",
    "sys/devices/system/cpu/online": "0-7\n",
    "proc/self/status": "Name:\tsh\nCpus_allowed_list:\t0-7\n",
}
V2 = "26 20 0:23 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
HUGE = "9223372036854771712\n"
SHELLS = [name for name in ("dash", "bash", "busybox") if shutil.which(name)]


def host(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in {**MACHINE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def asked(root: Path, shell: str = "sh", *, boxed: bool = False) -> Limits | None:
    program = ("busybox", "sh") if shell == "busybox" else (shell,)
    argv = (*program, "-c", cgroups.script(str(root), boxed=boxed))
    done = subprocess.run(argv, capture_output=True, check=True)
    assert done.stderr == b""
    return cgroups.read(by_word(done.stdout.decode()))


def v2(path: str, files: Mapping[str, str], top: str = "/") -> dict[str, str]:
    given = {f"sys/fs/cgroup{name}": content for name, content in files.items()}
    return {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": V2.format(top=top), **given}


def v1(path: str, files: Mapping[str, str], top: str = "/") -> dict[str, str]:
    given = {f"sys/fs/cgroup{name}": content for name, content in files.items()}
    groups = f"4:memory:{path}\n3:cpu,cpuacct:{path}\n2:freezer:/\n0::/\n"
    return {"proc/self/cgroup": groups, "proc/self/mountinfo": V1.format(top=top), **given}


USER = "/user.slice/user-1000.slice/session-3.scope"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, (8, 24, 4)),
        (v2("/", {"/cpu.stat": ""}), (8, 24, 4)),
        # a container sees its own group as the root
        (v2("/", {"/memory.max": f"{2 * GIB}\n", "/memory.current": f"{GIB}\n",
                  "/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
                  "/cpu.max": "150000 100000\n"}), (1.5, 2, 0.5)),
        # a slice of systemd, some levels above the session
        (v2(USER, {f"{USER}/memory.max": "max\n", f"{USER}/cpu.max": "max 100000\n",
                   "/user.slice/user-1000.slice/memory.max": f"{4 * GIB}\n",
                   "/user.slice/user-1000.slice/memory.current": f"{3 * GIB}\n",
                   "/user.slice/memory.max": f"{16 * GIB}\n",
                   "/user.slice/cpu.max": "400000 100000"}), (4, 4, 3)),
        # the group lies outside of what is mounted
        (v2("/../../other", {"/memory.max": f"{3 * GIB}\n"}), (8, 3, None)),
        (v2("/", {"/memory.max": f"{99 * GIB}\n"}), (8, 24, 4)),
        (v2("/", {"/memory.max": "wrong\n", "/cpu.max": "\n"}), (8, 24, 4)),
        (v1("/", {"/memory/memory.limit_in_bytes": HUGE, "/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                  "/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}), (8, 24, 4)),
        # a container under version 1: the mount's root is its own group
        (v1("/docker/abc", {"/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                            "/memory/memory.usage_in_bytes": f"{GIB}\n",
                            "/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                            "/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, "/docker/abc"),
         (2.5, 2, 1)),
        # only the statistics tell a limit of a group that is out of sight
        (v1("/", {"/memory/memory.limit_in_bytes": HUGE,
                  "/memory/memory.stat": f"hierarchical_memory_limit {5 * GIB}\n"}), (8, 5, None)),
        ({"proc/self/status": "Cpus_allowed_list:\t0-1,6\n"}, (3, 24, 4)),
    ],
    ids=["none", "unlimited", "container", "slice", "outside", "larger", "damaged", "version 1",
         "container 1", "hierarchical", "cpuset"],
)  # fmt: skip
def test_the_least_on_the_way_counts(
    tmp_path: Path, shell: str, files: Mapping[str, str], left: tuple[float, float, float | None]
) -> None:
    cpus, memory, used = left
    found = asked(host(tmp_path, files), shell)
    assert found
    bytes_used = None if used is None else used * GIB
    assert (found.cpus, found.memory_bytes, found.used_bytes) == (cpus, memory * GIB, bytes_used)
    assert (found.machine_cpus, found.machine_bytes) == (8, 24 * GIB)
    assert (found.of_cpus, found.of_memory) == (cpus < 8, memory < 24)


def test_of_less_than_a_processor_one_is_counted(tmp_path: Path) -> None:
    found = asked(host(tmp_path, v2("/", {"/cpu.max": "50000 100000\n"})))
    assert found
    assert (found.cpus, found.whole_cpus) == (0.5, 1)


def test_a_daemons_containers_are_in_other_groups_than_who_asks(tmp_path: Path) -> None:
    """A limit of the user's session is none of theirs; one of the host, or of their parent, is."""
    session = {f"{USER}/memory.max": f"{GIB}\n", f"{USER}/cpu.max": "100000 100000\n"}
    root = host(tmp_path, {**v2(USER, session), "proc/1/cgroup": "0::/init.scope\n"})
    found = asked(root, boxed=True)
    assert found
    assert not (found.of_memory or found.of_cpus)
    parent = tmp_path / "sys/fs/cgroup/system.slice"
    parent.mkdir()
    (parent / "memory.max").write_text(f"{6 * GIB}\n")
    found = asked(root, boxed=True)
    assert found
    assert found.memory_bytes == 6 * GIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{2 * GIB}\n")
    found = asked(root, boxed=True)
    assert found
    assert found.memory_bytes == 2 * GIB


@pytest.mark.parametrize("text", ["", "MemTotal: 24\n", "online 0-1\n", "MemTotal: x\nonline 0\n"])
def test_a_host_that_does_not_tell_is_unknown_and_not_empty(text: str) -> None:
    assert cgroups.read(by_word(text)) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 1), ("0-3,8", 5), ("0-63\n", 64), ("", None), ("3-1", None), ("0-99999", None),
     ("0-1,", None), ("\u0663", None)],
)  # fmt: skip
def test_lists_of_processors(text: str, count: int | None) -> None:
    assert cgroups.processors(text) == count


def test_room_is_what_the_limit_leaves() -> None:
    whole = Memory(used=8 * GIB, available=16 * GIB)
    slice_ = Limits(2, 4 * GIB, 8, 24 * GIB, used_bytes=GIB)
    assert limited(whole, slice_) == Memory(GIB, 3 * GIB)
    assert limited(whole, Limits(2, 24 * GIB, 2, 24 * GIB)) is whole
    assert limited(whole, None) is whole
    box = Memory(used=GIB, available=3 * GIB)  # Ray in a container sees the limit itself
    assert limited(box, slice_) is box
