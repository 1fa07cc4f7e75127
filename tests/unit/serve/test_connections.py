from __future__ import annotations

import resource
from pathlib import Path

import pytest

from raycluster.serve import connections
from raycluster.serve.connections import FEWEST, MOST, limited, memory, most_connections
from raycluster.serve.haproxy import edited

GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "held", "most"),
    [
        (resource.RLIM_INFINITY, 1024 * GIB, MOST),
        (1 << 20, 64 * GIB, MOST),
        (1 << 20, 8 * GIB, 7669),
        (4096, 64 * GIB, 1120),
        (1024, 64 * GIB, FEWEST),
        (1 << 20, GIB // 8, FEWEST),
    ],
)
def test_the_smaller_of_memory_and_files_counts(
    monkeypatch: pytest.MonkeyPatch, files: int, held: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, files))
    monkeypatch.setattr(connections, "memory", lambda: held)
    assert most_connections() == most


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_has_the_memory_that_it_may_take(tmp_path: Path, name: str) -> None:
    machine = memory(tmp_path)
    told = tmp_path / name
    told.parent.mkdir(exist_ok=True)
    for text, found in (("1000000", 1_000_000), ("max", machine), ("", machine)):
        told.write_text(text)
        assert memory(tmp_path) == found


def test_more_are_taken_to_be_refused_than_are_held() -> None:
    config = "global\n    maxconn 4096\nfrontend http_frontend\n    bind 127.0.0.1:1\n"
    assert limited(config, 1000).splitlines()[1] == "    maxconn 1250"
    assert limited(config, 8).splitlines()[1] == "    maxconn 72"
    assert any(
        "fe_conn gt 1000" in line for line in edited(config, {}, {}, connections=1000).splitlines()
    )
