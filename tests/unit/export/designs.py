"""Designs that the tests of exports share."""

from __future__ import annotations

from typing import Any

from raycluster.core.accelerators.choice import named
from raycluster.core.interfaces import Secret
from raycluster.export.design import Design, Given
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets

TOKEN, KEY, HUB = "f" * 64, "sk-0123456789abcdef", "hf_0123456789"
GIVEN = Given(
    Secret(TOKEN),
    Secrets(replicas={"HF_TOKEN": Secret(HUB)}, api_keys={"alice": Secret(KEY)}),
)
WHOLE: dict[str, Any] = {
    "cluster": {"name": "qwen"},
    "ssh": {"user": "root"},
    "runtime": {
        "volumes": ["/data/models:/models:ro", "spare:/spare"],
        "env": {"NCCL_SOCKET_IFNAME": "eth0", "ODD": 'a$b `c` "d" %h $(e) \\f'},
    },
    "head": {"host": "10.0.0.1", "gpus": 2, "num_cpus": 8},
    "workers": [{"host": "10.0.0.2", "gpus": 1}, {"host": "10.0.0.3", "gpus": 1}],
    "models": [{"name": "tiny", "source": "/models/tiny"}],
    "gateway": {"api_keys": {"alice": "env:ALICE_KEY"}, "tls": {"self_signed": True}},
    "monitoring": {},
    "firewall": {"manage": True},
    "secrets": {"HF_TOKEN": "env:HF_TOKEN"},
}
PLAIN: dict[str, Any] = {
    "cluster": {"name": "one"},
    "head": {"host": "10.0.0.1", "gpus": 0},
    "models": [{"name": "tiny", "source": "/models/tiny"}],
}


def design_of(tables: dict[str, Any] = WHOLE, *, given: Given | None = None) -> Design:
    """Return the design of these tables, whose hosts say their addresses and GPUs."""
    spec = ClusterSpec.model_validate(tables)
    gpus = {host.name: named(host.gpus) or 0 for host in spec.hosts}
    return Design(spec, {host.name: host.host for host in spec.hosts}, gpus, given)
