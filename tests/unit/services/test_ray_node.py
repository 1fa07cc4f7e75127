from __future__ import annotations

from raycluster.contracts import ROOT, Secret
from raycluster.services.head import head
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec


def env_of(**env: str) -> dict[str, str]:
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h0"}, "runtime": {"env": env}}
    )
    made = head(spec, spec.hosts[0], Wiring({"head": "10.0.0.1"}, Secret("t")))
    assert made
    return dict(made.env)


def test_caches_lie_in_the_cluster_s_folder_unless_the_spec_says_otherwise() -> None:
    env = env_of(HF_HOME="/models/hub")
    assert env["HF_HOME"] == "/models/hub"
    assert env["VLLM_CACHE_ROOT"] == f"{ROOT}/cache/vllm"
    assert env["TRITON_CACHE_DIR"] == f"{ROOT}/cache/triton"
    assert env["XDG_CACHE_HOME"] == f"{ROOT}/cache"
