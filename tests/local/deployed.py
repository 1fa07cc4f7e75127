"""What Serve runs, beside what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def out_of_date(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the applications that differ; `found` is what `/api/serve/applications/` returned."""
    there = {
        name: app.get("deployed_app_config") or {}
        for name, app in found.get("applications", {}).items()
    }
    wants = {app["name"]: app for app in wanted["applications"]}
    same = {
        name
        for name, app in wants.items()
        if name in there and all(there[name].get(key) == value for key, value in app.items())
    }
    return tuple(sorted((wants.keys() | there.keys()) - same))
