"""A host's GPUs read over a real SSH connection, from a double of nvidia-smi."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycluster.core.accelerators.values import Accelerators
from raycluster.hosts.transports.ssh import open_ssh
from raycluster.observe.facts import read_facts
from tests.contract.sshd import SSHD, Sshd
from tests.lab import fake_nvidia as fake

if SSHD is None:
    pytest.skip("there is no sshd", allow_module_level=True)

Read = Callable[[fake.Driver], Accelerators]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Read]:
    """Return what a host tells whose nvidia-smi is the given one."""
    folder: Path = tmp_path_factory.mktemp("gpus")
    path = f"{folder}:{os.environ['PATH']}"
    sshd = Sshd(folder / "sshd", extra=f"SetEnv PATH={path}").start()
    transport = open_ssh("gpu-1", sshd.options())

    def read(driver: fake.Driver) -> Accelerators:
        driver.install(folder)
        return read_facts(transport).gpus

    yield read
    transport.close()
    sshd.stop()


@pytest.mark.parametrize(
    ("driver", "indices", "problem"),
    [
        (fake.driver(0), "", ""),
        (fake.driver(1), "0", ""),
        (fake.driver(8), "0 1 2 3 4 5 6 7", ""),
        (fake.OLD, "0 1", ""),
        (fake.MIG, "0:0 0:1 0:2 1", ""),
        (fake.ILL, "0", "a GPU is lost: Unable to determine the device handle"),
    ],
    ids=["none", "one", "eight", "old driver", "MIG", "lost"],
)
def test_gpus_over_ssh(read: Read, driver: fake.Driver, indices: str, problem: str) -> None:
    found = read(driver)
    assert " ".join(device.index for device in found.devices) == indices
    assert (found.problem.what if found.problem else "").startswith(problem)
    assert bool(found.problem) == bool(problem)
