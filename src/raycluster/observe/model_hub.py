"""Asks a model hub what a model holds: names and bytes of its files, and its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from raycluster.core.errors import AnswerError
from raycluster.core.interfaces import Secret
from raycluster.core.untrusted import Told, read_json
from raycluster.hosts.http import whole_answer
from raycluster.serve.model_refs import ModelRef
from raycluster.spec.secret_sources import bearer
from raycluster.state.inventory import Files

ANSWER_S = 5.0
"""Seconds for each answer: without the hub a plan says less, and is not held up."""


def read_hub(
    endpoint: str, token: Secret | None, models: Sequence[ModelRef]
) -> dict[ModelRef, Files]:
    """Return what the hub tells of each model; a hub that does not answer is asked only once.

    Raises SecretError for a token that no header can carry.
    """
    headers = bearer("HF_TOKEN", token) if token else {}
    found: dict[ModelRef, Files] = {}
    with httpx.Client(
        base_url=endpoint.rstrip("/"), headers=headers, timeout=ANSWER_S, follow_redirects=True
    ) as client:
        for model in models:
            try:
                found[model] = _files(client, model)
            except httpx.TransportError:
                break
            except (httpx.HTTPError, httpx.InvalidURL, AnswerError):
                continue  # a gated or unknown model, which the nodes will say better
    return found


def _files(client: httpx.Client, model: ModelRef) -> Files:
    revision = quote(model.revision, safe="")
    told = _json(client, f"/api/models/{model.source}/revision/{revision}?blobs=true")
    each = {
        file["rfilename"].text(1000): file["size"].whole() for file in told["siblings"].listed()
    }
    sizes = {name: size for name, size in each.items() if size is not None}
    config: Mapping[str, Any] | None = None
    if "config.json" in sizes:
        sha = quote(told["sha"].text(100), safe="")
        config = _json(client, f"/{model.source}/resolve/{sha}/config.json").table()
    return Files(sizes, config)


def _json(client: httpx.Client, path: str) -> Told:
    return read_json(whole_answer(client, path).raise_for_status().content, "the hub")
