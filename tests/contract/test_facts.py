"""A host's facts, read over a real SSH connection from hosts as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycluster.apply.look_ahead import disk_of
from raycluster.core.interfaces import Facts, Transport
from raycluster.hosts.dashboard import holders
from raycluster.hosts.transports.ssh import open_ssh
from raycluster.observe.facts import read_facts
from raycluster.observe.listening_ports import read_listeners
from tests.contract.cgroups import limited
from tests.contract.sshd import SSHD, Sshd, wait_for

if SSHD is None:
    pytest.skip("there is no sshd", allow_module_level=True)

GIB = 1 << 30
APPLETS = ("awk", "date", "df", "sed", "grep", "id", "uname", "head", "stat", "sort")
Host = Callable[[str], Transport]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Return a way to a host in German whose awk, or whose every tool, is the given one."""
    locales, tools = tmp_path / "locales", tmp_path / "tools"
    locales.mkdir()
    tools.mkdir()
    german = ("localedef", "-i", "de_DE", "-f", "UTF-8", str(locales / "de_DE.UTF-8"))
    subprocess.run(german, check=True, capture_output=True)
    words = f"LC_ALL=de_DE.UTF-8 LANG=de_DE.UTF-8 LANGUAGE=de LOCPATH={locales}"
    sshd = Sshd(tmp_path / "sshd", f"SetEnv SHLVL=9 {words} PATH={tools}:{os.environ['PATH']}")
    transports: list[Transport] = []

    def reach(tool: str) -> Transport:
        program = shutil.which(tool)
        if program is None:
            pytest.skip(f"needs {tool}")
        for name in APPLETS if tool == "busybox" else ("awk",):
            (tools / name).symlink_to(program)
        transports.append(open_ssh("german", sshd.start().options()))
        return transports[0]

    yield reach
    for transport in transports:
        transport.close()
    sshd.stop()


def meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def right(facts: Facts) -> None:
    """Assert that the values are those that the kernel tells."""
    assert facts.memory_bytes <= meminfo("MemTotal")
    assert 1 <= facts.cpus <= (os.cpu_count() or 1)
    assert abs(facts.epoch - time.time()) < 60
    assert facts.machine == os.uname().machine


def disks_agree(transport: Transport) -> bool:
    """Tell whether three looks at one disk, after each other, find about the same."""
    told = read_facts(transport).disk_free_bytes
    disk, space = disk_of(transport, "/nowhere/yet"), os.statvfs("/")
    assert told is not None
    assert disk
    free = space.f_bavail * space.f_frsize
    return abs(told - free) < GIB and abs(disk.free - free) < GIB


@pytest.mark.parametrize("tool", ["mawk", "busybox"])
def test_a_host_in_another_language_tells_the_same(host: Host, tool: str) -> None:
    transport = host(tool)
    facts = read_facts(transport)
    right(facts)
    wait_for(lambda: disks_agree(transport), "a look at a disk to which nobody else writes much")
    assert facts.memory_bytes >> 20, "a number of more than nine digits is whole"
    port = next(iter(facts.listening))
    assert facts.listening >= {each.port for each in read_listeners(transport)} - {0} or port
    assert isinstance(holders(transport, port), tuple)


@pytest.mark.parametrize("above", [False, True], ids=["its own group", "the group above"])
def test_a_host_within_limits_offers_no_more(tmp_path: Path, *, above: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for control groups")
    sshd = Sshd(tmp_path / "sshd").start()
    assert sshd.child
    with limited(sshd.child.pid, memory=2 * GIB, quota_us=150_000, above=above):
        transport = open_ssh("rented", sshd.options())
        facts = read_facts(transport)
        boxed = read_facts(transport, boxed=True)
        transport.close()
        sshd.stop()
    assert (facts.memory_bytes, facts.cpus) == (2 * GIB, 1)
    assert facts.limits
    assert (facts.limits.cpus, facts.limits.machine_bytes) == (1.5, meminfo("MemTotal"))
    assert facts.limits.used_bytes
    assert facts.limits.used_bytes < GIB
    assert boxed.memory_bytes > 2 * GIB, "a daemon's containers are in other groups"
