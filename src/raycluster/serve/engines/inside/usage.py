"""Requests and tokens by model and owner."""

from __future__ import annotations

from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from raycluster.serve.engines.inside.key import OWNER

OTHERS = "other"
MOST_OWNERS = 1000
"""Owners who are counted apart; whoever is at the cluster's own ports can name any number."""


class Usage:
    """Requests and tokens by model and owner, in prometheus_client's registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._tokens = Counter(
            "raycluster_usage_tokens",
            "Tokens of requests that have ended or were given up; kind: prompt (cached included),"
            " cached, generation.",
            ("model", "owner", "kind"),
            registry=registry,
        )
        self._requests = Counter(
            "raycluster_usage_requests",
            "Requests that the engine was asked.",
            ("model", "owner"),
            registry=registry,
        )
        self._owners: set[str] = set()

    def asked(self, model: str) -> None:
        """Count a request of whoever asks now."""
        self._requests.labels(model, self._known(OWNER.get())).inc()

    def took(self, model: str, owner: str, prompt: int, cached: int, generation: int) -> None:
        """Count the tokens of a sequence."""
        for kind, tokens in (("prompt", prompt), ("cached", cached), ("generation", generation)):
            self._tokens.labels(model, self._known(owner), kind).inc(tokens)

    def _known(self, owner: str) -> str:
        if owner in self._owners or len(self._owners) < MOST_OWNERS:
            self._owners.add(owner)
            return owner
        return OTHERS


@cache
def usage() -> Usage:
    """Return the figures of this process."""
    return Usage()
