"""A model's environment that `up` makes: on a native host and in a container, both over SSH.

Tiny wheels stand for vLLM's; uv, sshd and the daemon are real.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from uv import find_uv_bin

from raycluster.apply.context import ApplyContext
from raycluster.apply.distribution.environments import make_environments
from raycluster.core.errors import HostError
from raycluster.core.events import Event
from raycluster.core.interfaces import PYTHON, ROOT, Process, Runtime, Versions, Volume
from raycluster.services.app import app
from raycluster.services.node_files import code_files
from raycluster.services.ray_node import CODE_FOLDER
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState, HostState, RayNode
from tests.contract.conftest import Kind
from tests.wheels import make_wheel, write_index

ASK = "import vllm, sys; print(vllm.__version__, sys.prefix, sep=chr(10))"


@dataclass(frozen=True)
class OneHost:
    """What is needed of a fleet."""

    runtime: Runtime
    role: str = "head"

    def check(self) -> None: ...

    def each(self, names: Iterable[str], work: Callable[[Any], Any]) -> dict[str, Any]:
        connected = SimpleNamespace(
            host=SimpleNamespace(name="head", role="head"), runtime=self.runtime
        )
        found: dict[str, Any] = {}
        for name in names:
            try:
                found[name] = work(connected)
            except HostError as error:
                found[name] = error
        return found


@pytest.fixture(params=["bare_native", "bare_docker"])
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.getfixturevalue(f"{request.param}_kind")
    return made


def test_up_makes_the_environment_once_where_the_replica_finds_it(
    kind: Kind, tmp_path: Path
) -> None:
    tools, index = tmp_path / "tools", tmp_path / "index"
    tools.mkdir()
    shutil.copy(find_uv_bin(), tools / "uv")
    make_wheel(index, "vllm", "0.31.0", modules={"vllm/__init__.py": "__version__ = '0.31.0'\n"})
    write_index(index)
    mounted = [Volume(str(each), str(each), read_only=True) for each in (tools, index)]
    process = Process(
        "head",
        ("sleep", "1000"),
        {
            **{"RAYCLUSTER_ROOT": ROOT, "PYTHONPATH": f"{ROOT}/{CODE_FOLDER}"},
            **{"PATH": f"{tools}:/usr/bin:/bin", "UV_HTTP_RETRIES": "0"},
        },
        image=kind.image,
        volumes=(*kind.volumes, *mounted) if kind.image else (),
    )
    spec = spec_of(index, "0.31.0")
    state = ClusterState(
        {"head": HostState("head", "127.0.0.1")},
        nodes=(RayNode("127.0.0.1", "1", alive=True, is_head=True, cpus=2),),
    )
    runtime, told = kind.make_runtime("environments"), list[Event]()
    try:
        runtime.start(process, Versions(), code_files(), lambda _: None)
        body = app(spec, gpus={}, fingerprint="f")
        for how in ("created", "exists already"):
            work = SimpleNamespace(spec=spec, fleet=OneHost(runtime), listen=told.append)
            make_environments(cast(ApplyContext, work), state, body)
            assert told[-1].text == f"environment with vLLM 0.31.0: {how}"
        (model,) = [a["args"]["model"] for a in body["applications"] if "model" in a["args"]]
        shell = runtime.inside("head")
        find = "import json, sys; from raycluster.serve.environment import Environment as E; "
        find += f"print(E.from_json({model['environment']!r}).program)"
        python = shell.run((*PYTHON, "-c", find)).text
        done = shell.run((python, "-c", ASK))
        assert done.text.splitlines() == ["0.31.0", str(Path(python).parents[1])]
        gone = spec_of(index, "0.30.0")
        work = SimpleNamespace(spec=gone, fleet=OneHost(runtime), listen=told.append)
        with pytest.raises(HostError, match=r"0\.30\.0") as refused:
            make_environments(cast(ApplyContext, work), state, app(gone, gpus={}, fingerprint="f"))
        assert "[models.environment]" in refused.value.hint
    finally:
        runtime.remove()


def spec_of(index: Path, version: str) -> ClusterSpec:
    return ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "head": {"host": "127.0.0.1"},
            "env": {"UV_DEFAULT_INDEX": f"file://{index}/simple"},
            "models": [
                {
                    "name": "m",
                    "engine": "vllm",
                    "environment": {"requirements": [f"vllm=={version}"]},
                }
            ],
        }
    )
