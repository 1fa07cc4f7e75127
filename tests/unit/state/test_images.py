"""Which image runs under a tag's name, as hosts have noted it."""

from __future__ import annotations

import pytest

from raycluster.core.interfaces import Found, Versions
from raycluster.spec import ClusterSpec
from raycluster.state.cluster import ClusterState, HostState
from raycluster.state.images import others, started_from

OLD, NEW = ("sha256:" + digit * 64 for digit in "12")
NAME = "registry.example:5000/vllm/vllm-openai:v1"
SPEC = ClusterSpec.model_validate(
    {"cluster": {"name": "q"}, "head": {"host": "h0"}, "workers": [{"host": "h1", "name": "h1"}]}
)


def state(**noted: str) -> ClusterState:
    """What was seen of hosts that noted this of their image."""
    return ClusterState(
        {
            host.name: HostState(
                host.name,
                found=(
                    Found("ray", "f", "running", Versions(image=noted[host.name])),
                    Found("other", "f", "running", Versions(ray="2.60.0")),
                )
                if host.name in noted
                else (),
            )
            for host in SPEC.hosts
        }
    )


def test_a_host_with_another_image_under_the_name_is_told_with_the_way_to_one() -> None:
    found = started_from(SPEC, state(head=f"{NAME}@{OLD}", h1=f"{NAME}@{NEW}"))
    assert found == {NAME: {"head": OLD, "h1": NEW}}
    (other,) = others(found)
    assert (other.where, other.first) == ("h1", "head")
    assert f"{NAME} is sha256:{'2' * 12} here, and sha256:{'1' * 12} on head" in other.what
    assert f'"registry.example:5000/vllm/vllm-openai@{OLD}"' in other.hint


@pytest.mark.parametrize(
    "noted",
    [
        {},
        {"head": f"{NAME}@{OLD}"},
        {"head": f"{NAME}@{OLD}", "h1": f"{NAME}@{OLD}"},
        {"head": f"{NAME}@{OLD}", "h1": ""},
        {"head": f"{NAME}@{OLD}", "h1": "vllm:2@" + NEW},
        *({"head": f"{NAME}@{OLD}", "h1": f"{NAME}@{bad}"} for bad in ("", NEW[:-1], f"{NEW} -x")),
    ],
)
def test_what_is_one_image_or_no_digest_needs_no_word(noted: dict[str, str]) -> None:
    assert others(started_from(SPEC, state(**noted))) == ()
