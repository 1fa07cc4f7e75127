"""A model goes from node to node: the nodes' own huggingface_hub finds it, and no hub is asked."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.models import bring
from raycluster.apply.distribution.peer_transfer import TransferPeer, exchange, spoken
from raycluster.core.events import Event
from raycluster.core.interfaces import Runtime, Secret, Transport
from raycluster.hosts import fleet as connect
from raycluster.hosts.fleet import Fleet
from raycluster.hosts.transports.local import LocalTransport
from raycluster.serve.model_refs import ModelRef, order
from raycluster.serve.settings import ModelSettings
from raycluster.spec import ClusterSpec, ResolvedHost
from raycluster.spec.secret_values import Secrets
from tests.node.hub import Hub, open_hub
from tests.node.nodes import Inside, Nodes, state_of
from tests.ports import free_port

pytestmark = [pytest.mark.local, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
WANTED = ModelRef("acme/tiny")
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "extra/tokenizer.json": random.Random(1).randbytes(5_000),
    "model.safetensors": random.Random(2).randbytes(20_000_000),
}
NO_HUB = "http://127.0.0.1:9"


@dataclass
class Node:
    """A node's folder and environment; its address is one of 127.0.0.0/8."""

    number: int
    root: Path
    python: str
    hub: str

    @property
    def env(self) -> dict[str, str]:
        env = {"HOME": str(self.root), "PYTHONPATH": str(ROOT / "src"), "HF_ENDPOINT": self.hub}
        env |= {"RAYCLUSTER_ROOT": str(self.root), "HF_HOME": str(self.root / "cache/huggingface")}
        return {"PATH": os.environ["PATH"], **env}

    def fetch(self, *, verify: bool = False) -> dict[str, Any]:
        ask = order([WANTED], verify=verify, secrets_path="$RAYCLUSTER_ROOT/secrets.json")
        argv = [self.python, "-m", "raycluster.serve.fetch", ask]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def party(self) -> TransferPeer:
        path = self.root / "share.json"

        def deliver(content: bytes) -> None:
            path.touch(0o600)
            path.write_bytes(content)

        name = f"node-{self.number}"
        argv = (self.python, "-m", "raycluster.serve.share", str(path))
        address = f"127.0.0.{self.number}"
        return TransferPeer(name, address, LocalTransport(name), argv, self.env, deliver)

    def ask(self, listed: object = None) -> dict[str, Any]:
        secrets_path = "$RAYCLUSTER_ROOT/secrets.json"
        return {"secrets_path": secrets_path, "model": asdict(WANTED), "listed": listed}

    def held(self) -> Any:
        party = self.party()
        party.deliver(json.dumps(self.ask()).encode())
        with closing(spoken(party.shell, party.argv, party.env)) as lines:
            return next(lines)["held"].value

    def content(self, commit: str) -> Mapping[str, bytes]:
        folder = self.root / f"cache/huggingface/hub/models--acme--tiny/snapshots/{commit}"
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }


@pytest.fixture(scope="module")
def python() -> str:
    done = subprocess.run(
        [ROOT / "scripts" / "node-env"], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split("\n")[-2] + "/bin/python"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with open_hub(Hub(WANTED.source, dict(FILES))) as opened:
        yield opened


def make_node(folder: Path, number: int, python: str, hub: str) -> Node:
    root = folder / str(number)
    root.mkdir()
    (root / "secrets.json").write_text("{}")
    return Node(number, root, python, hub)


def test_one_node_fetches_and_the_others_take_it_from_there(
    tmp_path: Path, python: str, hub: Hub
) -> None:
    first = make_node(tmp_path, 1, python, hub.url)
    others = [make_node(tmp_path, n, python, NO_HUB) for n in (2, 3)]
    first.fetch()
    assert [node.held() for node in others] == [None, None]
    listed = first.held()
    assert {file["name"] for file in listed["files"]} == FILES.keys()
    sent = dict(hub.sent)
    parties = [first.party(), *(node.party() for node in others)]
    told: list[str] = []
    problems = exchange(
        parties[:1],
        parties[1:],
        free_port(),
        first.ask(listed),
        lambda host, line: told.append(host) if line["done"].flag() else None,
    )
    assert problems == {}
    assert {"node-2", "node-3"} <= {*told}
    for node in others:
        assert node.content(hub.commit) == FILES
        assert node.held() == listed
        result = node.fetch(verify=True)["result"]  # reads every byte again
        assert (result["version"], result["fetched"]) == (hub.commit, False)
        assert not (node.root / "share.json").exists()
    assert hub.sent == sent


def test_a_damaged_model_is_not_handed_on(tmp_path: Path, python: str, hub: Hub) -> None:
    first, second = (make_node(tmp_path, n, python, hub.url) for n in (1, 2))
    first.fetch()
    listed = first.held()
    folder = first.root / "cache/huggingface/hub/models--acme--tiny/snapshots" / hub.commit
    weights = (folder / "model.safetensors").resolve()
    weights.write_bytes(b"x" * len(FILES["model.safetensors"]))
    problems = exchange(
        [first.party()], [second.party()], free_port(), first.ask(listed), lambda *_: None
    )
    assert problems["node-1"] == "model.safetensors of acme/tiny is damaged"
    assert problems["node-2"] == "no host provides it"
    assert second.held() is None


def test_names_from_another_node_lead_nowhere_else(tmp_path: Path, python: str, hub: Hub) -> None:
    second = make_node(tmp_path, 2, python, hub.url)
    strange = {"name": "../../../../evil", "size": 1, "digest": "0" * 64}
    order = second.ask({"commit": "a" * 40, "files": [strange]})
    party = second.party()
    party.deliver(
        json.dumps(
            {**order, "token": "t", "listen": "127.0.0.2", "port": 9, "peers": [["127.0.0.1", 9]]}
        ).encode()
    )
    with closing(spoken(party.shell, party.argv, party.env)) as lines:
        assert next(lines).value == {"error": "acme/tiny lists files outside its folder"}


@pytest.fixture
def spec(tmp_path: Path, python: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> ClusterSpec:
    """Three hosts that are folders here; the last ones have no way to the hub."""
    numbers = {"head": 1, "second": 2, "third": 3}
    made = {
        name: make_node(tmp_path, number, python, hub.url if number == 1 else NO_HUB)
        for name, number in numbers.items()
    }

    def nodes(host: ResolvedHost, cluster: str, transport: Transport) -> Runtime:
        path = f"{Path(python).parent}:{os.environ['PATH']}"
        return cast(Runtime, Nodes(Inside(transport, {**made[host.name].env, "PATH": path})))

    local = {"ssh": lambda host, ask: LocalTransport(host.name)}
    monkeypatch.setattr(connect, "TRANSPORTS", local)
    monkeypatch.setattr(connect, "RUNTIMES", {"docker": nodes})
    hosts = [{"host": n, "private_address": f"127.0.0.{i}"} for n, i in numbers.items()]
    workers = [{**hosts[1], "name": "second"}, {**hosts[2], "name": "third"}]
    table = {"cluster": {"name": "q"}, "head": hosts[0], "workers": workers}
    return ClusterSpec.model_validate({**table, "ports": {"transfer": free_port()}})


def brought(spec: ClusterSpec, *, alone: bool = False) -> list[Event]:
    settings = ModelSettings("m", WANTED.source, secrets_path="$RAYCLUSTER_ROOT/secrets.json")
    body = {"applications": [{"args": {"model": settings.to_json()}}]}
    told: list[Event] = []
    with Fleet("q", 4) as fleet:
        fleet.reach(spec.hosts, lambda connected: connected.address)
        work = ApplyContext(spec, fleet, Secret("t"), Secrets(), told.append)
        state = state_of(work)
        if alone:
            state = replace(state, nodes=tuple(n for n in state.nodes or () if n.is_head))
        bring(work, state, body)
    return told


def test_up_brings_a_model_to_one_host_and_on_from_there(
    tmp_path: Path, spec: ClusterSpec, hub: Hub
) -> None:
    brought(spec, alone=True)
    assert Counter(hub.sent) == {name: len(content) for name, content in FILES.items()}
    told = brought(spec)
    assert Counter(hub.sent) == {name: len(content) for name, content in FILES.items()}
    taken = {e.subject for e in told if "copied from other hosts and verified" in e.text}
    assert taken == {"second", "third"}
    assert not [e for e in told if e.kind == "note"], "and need no hub for it"
    assert not [e for e in brought(spec) if "from other hosts" in e.text], "once is enough"
    files = sorted(p.name for p in tmp_path.glob("?/cache/huggingface/hub/models--*/blobs/*"))
    assert len(files) == 3 * len(FILES)
