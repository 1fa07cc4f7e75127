from __future__ import annotations

from pathlib import Path

import pytest

from raycluster.core.interfaces import BoxOptions
from raycluster.hosts.runtimes.docker_rdma import has_rdma, with_rdma
from raycluster.hosts.transports.local import LocalTransport

WHOLE = BoxOptions(("/dev/infiniband",), {"memlock": -1}, ("IPC_LOCK",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (BoxOptions(), WHOLE),
        (WHOLE, WHOLE),
        (
            BoxOptions(("/dev/fuse",), {"nofile": 9}, ("SYS_NICE",), "host"),
            BoxOptions(
                ("/dev/fuse", "/dev/infiniband"),
                {"memlock": -1, "nofile": 9},
                ("SYS_NICE", "IPC_LOCK"),
                "host",
            ),
        ),
        (
            BoxOptions(("/dev/infiniband/uverbs1",), {"memlock": 4096}, ("CAP_IPC_LOCK",)),
            BoxOptions(("/dev/infiniband/uverbs1",), {"memlock": 4096}, ("CAP_IPC_LOCK",)),
        ),
    ],
)
def test_what_rdma_needs_is_added_to_what_is_said(given: BoxOptions, expected: BoxOptions) -> None:
    assert with_rdma(given) == expected


def test_a_folder_without_devices_is_no_rdma(tmp_path: Path) -> None:
    (tmp_path / "uverbs0").touch()
    assert not has_rdma(LocalTransport("here"), str(tmp_path))
    assert not has_rdma(LocalTransport("here"), str(tmp_path / "none"))
