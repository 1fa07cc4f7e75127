"""`raycluster schema`: the JSON Schema of `cluster.toml`, for editors."""

from __future__ import annotations

import json
import sys

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> None:
    """Print the JSON Schema of cluster.toml."""
    sys.stdout.write(schema_json())


def schema_json() -> str:
    """Return the schema as indented JSON."""
    from raycluster.spec import ClusterSpec

    body = ClusterSpec.model_json_schema(by_alias=True)
    head = {"$schema": DIALECT, "$id": "urn:raycluster:cluster.toml:1", "title": "cluster.toml"}
    return json.dumps(head | {k: v for k, v in body.items() if k not in head}, indent=2) + "\n"
