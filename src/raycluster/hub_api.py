"""Asks a model hub what a model holds: names and bytes of its files, and its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from raycluster.contracts import Secret
from raycluster.forecast.seen import Files
from raycluster.secrets import bearer
from raycluster.serve.wanted import Wanted

ANSWER_S = 5.0
"""Seconds for each answer: without the hub a plan says less, and is not held up."""


def read_hub(endpoint: str, token: Secret | None, models: Sequence[Wanted]) -> dict[Wanted, Files]:
    """Return what the hub tells of each model; a hub that does not answer is asked only once.

    Raises SecretError for a token that no header can carry.
    """
    headers = bearer("HF_TOKEN", token) if token else {}
    found: dict[Wanted, Files] = {}
    with httpx.Client(
        base_url=endpoint.rstrip("/"), headers=headers, timeout=ANSWER_S, follow_redirects=True
    ) as client:
        for model in models:
            try:
                found[model] = _files(client, model)
            except httpx.TransportError:
                break
            except (httpx.HTTPError, httpx.InvalidURL, LookupError, TypeError, ValueError):
                continue  # a gated or unknown model, which the nodes will say better
    return found


def _files(client: httpx.Client, model: Wanted) -> Files:
    revision = quote(model.revision, safe="")
    told = _json(client, f"/api/models/{model.source}/revision/{revision}?blobs=true")
    sizes = {str(each["rfilename"]): int(each["size"]) for each in told["siblings"]}
    config: Mapping[str, Any] | None = None
    if "config.json" in sizes:
        config = _json(client, f"/{model.source}/resolve/{told['sha']}/config.json")
    return Files(sizes, config)


def _json(client: httpx.Client, path: str) -> dict[str, Any]:
    found = client.get(path).raise_for_status().json()
    if not isinstance(found, dict):
        raise TypeError(path)
    return found
