"""One cluster with figures for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.conftest import make_cli
from tests.lab.hosts import Lab
from tests.lab.services.cluster import KEY, Watched, watched_cluster


@pytest.fixture(scope="package")
def watched(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The fixture `watched`: head and worker with gateways and Prometheus, after a load.

    `watched.query(EXPRESSION)` returns series. A test that changes the cluster leaves it whole.
    """
    folder = tmp_path_factory.mktemp("watched")
    cli = make_cli(lab, folder / "home", {"ALICE_KEY": KEY})
    with watched_cluster(lab, folder, cli) as running:
        yield running
