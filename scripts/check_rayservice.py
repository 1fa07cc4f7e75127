"""Check the RayService of an export against KubeRay's own schema.

    .venv/bin/python scripts/check_rayservice.py CRD MANIFEST

CRD is ray.io_rayservices.yaml, from ray-operator/config/crd/bases of a release of KubeRay: it is
in no package that a test could install. A field that the schema has not is an error too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml


def main() -> None:
    """Print every violation; end with 1 where there is any."""
    crd, manifest = (yaml.safe_load(Path(path).read_text()) for path in sys.argv[1:3])
    [version] = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(manifest))
    for error in errors:
        print("/".join(map(str, error.absolute_path)), error.message, sep=": ")
    print(f"{len(errors)} violations")
    sys.exit(bool(errors))


def closed(schema: Any) -> Any:  # noqa: ANN401  # JSON
    """Return the schema with unknown fields refused, which the API server only drops."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    known = made.get("type") == "object" and isinstance(made.get("properties"), dict)
    if known and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


if __name__ == "__main__":
    main()
