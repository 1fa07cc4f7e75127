"""Whether a cluster is there, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raycluster.commands.tunnel import tunnel
from raycluster.core.errors import HostError, UsageError
from raycluster.core.interfaces import Process, Versions
from raycluster.hosts.fleet import connect
from raycluster.observe.liveness import check_up
from raycluster.services.processes import role_of
from raycluster.spec import read_spec

SPEC = f"""
cluster.name = "c"
head.transport = "local"
models = [{{ name = "m" }}]
[runtime]
kind = "native"
python = "{sys.executable}"
start_on_boot = false
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "cluster.toml"
    path.write_text(SPEC)
    return path


def test_a_tunnel_to_a_cluster_that_was_never_made_ends_at_once(spec: Path) -> None:
    with pytest.raises(HostError, match="head: the cluster does not run here") as caught:
        tunnel(spec)
    assert caught.value.hint == "raycluster up"


def test_a_cluster_that_was_made_is_waited_for(spec: Path) -> None:
    cluster = read_spec(spec)
    runtime = connect(cluster.hosts[0], "c").runtime
    try:
        runtime.start(Process("head", ("false",)), Versions(), {}, lambda _: None)
        check_up(cluster)
    finally:
        runtime.remove()


def test_a_head_that_cannot_be_seen_may_come_back(spec: Path) -> None:
    spec.write_text(
        SPEC.replace('head.transport = "local"', 'head = { host = "127.0.0.1", port = 1 }')
    )
    check_up(read_spec(spec))


GATES = """
[[workers]]
host = "b"
name = "b"
[gateway]
on = "all"
"""


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("head", ("head", "head")),
        ("b", ("b", "worker")),
        ("gateway", ("head", "gateway")),
        ("b/gateway", ("b", "gateway")),
        ("b/worker", ("b", "worker")),
    ],
)
def test_a_process_is_named_by_host_role_or_both(
    spec: Path, name: str, where: tuple[str, str]
) -> None:
    text = SPEC.replace('head.transport = "local"', 'head.host = "a"')
    spec.write_text(text + GATES)
    host, role = role_of(read_spec(spec), name)
    assert (host.name, role) == where


@pytest.mark.parametrize(("name", "hint"), [("b/head", "b/worker, b/gateway"), ("c/x", "head, b")])
def test_what_is_not_there_is_refused_with_what_is(spec: Path, name: str, hint: str) -> None:
    text = SPEC.replace('head.transport = "local"', 'head.host = "a"')
    spec.write_text(text + GATES)
    with pytest.raises(UsageError) as caught:
        role_of(read_spec(spec), name)
    assert hint in caught.value.hint
