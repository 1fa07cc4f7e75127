"""What an app still does while it changes."""

from __future__ import annotations

from raycluster.state.cluster import App


def still_serving(app: App) -> str:
    """Return what to tell of the replicas that serve although the newest version failed, or ""."""
    if not app.failed or not app.serving:
        return ""
    count = "1 replica" if app.serving == 1 else f"{app.serving} replicas"
    return f"the previous version keeps serving ({count})"
