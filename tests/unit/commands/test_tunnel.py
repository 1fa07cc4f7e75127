"""What `tunnel` forwards of what a spec asks for."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.commands.tunnel import _on_loopback
from raycluster.spec import ClusterSpec

ALWAYS = {"api": 8000, "dashboard": 8265}


@pytest.mark.parametrize(
    ("parts", "more"),
    [
        ({}, {}),
        ({"monitoring": {}}, {"prometheus": 9090}),
        ({"monitoring": {"prometheus": False}}, {}),
        ({"monitoring": {"grafana": True}}, {"prometheus": 9090, "grafana": 3000}),
        (
            {"monitoring": {"grafana": True}, "ports": {"grafana": 3300}},
            {"prometheus": 9090, "grafana": 3300},
        ),
    ],
)
def test_what_listens_on_loopback_is_forwarded(parts: dict[str, Any], more: dict[str, int]) -> None:
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}, **parts})
    assert _on_loopback(spec) == {**ALWAYS, **more}
