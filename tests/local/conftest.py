"""What the tests of the app share: the model, and one Ray for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.local.cluster import Cluster, made_by, open_cluster


@pytest.fixture(scope="module")
def model() -> str:
    return made_by("model")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as cluster:
        yield cluster
