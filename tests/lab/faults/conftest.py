"""One cluster for all faults of this folder: each test leaves it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.conftest import make_cli
from tests.lab.faults.cluster import KEY, Faulty, faulty_cluster
from tests.lab.hosts import Lab


@pytest.fixture(scope="package")
def faulty(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """A cluster on three hosts, each with a gateway and a replica."""
    folder = tmp_path_factory.mktemp("faults")
    cli = make_cli(lab, folder / "home", {"FAULTS_KEY": KEY})
    with faulty_cluster(lab, folder, cli) as running:
        yield running
