"""The Serve application of one model: a replica holds the engine and serves the engine's own API.

Serve imports this file in a task before it starts replicas: it imports no engine.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from raycluster.serve import engines
from raycluster.serve.capture import Capture
from raycluster.serve.engines import ASGI, Engine, EngineError
from raycluster.serve.front import Front
from raycluster.serve.rootcause import MARK, explain
from raycluster.serve.settings import DEPLOYMENT, ModelSettings

logger = logging.getLogger("ray.serve")

ATTEMPTS = 2
"""Starts of a replica before a first deployment is called failed; Serve's own number is 3 each."""


def build(args: Mapping[str, Any]) -> Application:
    """Return the application for what `settings.applications` put into `args`."""
    return Model.bind(args["model"])  # type: ignore[attr-defined]


@serve.deployment(name=DEPLOYMENT, max_constructor_retry_count=ATTEMPTS)
@serve.ingress()
class Model:
    """One replica."""

    async def __init__(self, told: Mapping[str, Any]) -> None:  # type: ignore[misc]
        settings = ModelSettings.from_json(told)
        load_secrets(settings.secrets_path)
        began = time.monotonic()
        self._engine, self._app, reason = await start(settings)
        self._report = {
            "engine": self._engine.name,
            "reason": reason,
            "model": settings.name,
            "versions": {
                "python": platform.python_version(),
                "ray": ray.__version__,
                **self._engine.versions,
            },
            "seconds": {
                **{phase: round(took, 2) for phase, took in self._engine.phases.items()},
                "total": round(time.monotonic() - began, 2),
            },
        }
        logger.info("raycluster: %s", json.dumps(self._report))

    async def __serve_build_asgi_app__(self) -> ASGI:
        return Front(self._app, self._report)

    async def check_health(self) -> None:
        await self._engine.check()

    async def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            await engine.stop()


async def start(settings: ModelSettings) -> tuple[Engine, ASGI, str]:
    """Return a started engine, its application, and why it is not the one that comes first.

    Raises RuntimeError, whose only line is the marked root cause.
    """
    if missing := missing_path(settings.source):
        raise RuntimeError(MARK + missing)
    wanted = ("vllm", "transformers") if settings.engine == "auto" else (settings.engine,)
    reasons: dict[str, str] = {}
    for name in wanted:
        capture = Capture()
        engine = engines.make(name)
        try:
            return engine, await engine.start(settings), reasons.get("vllm", "")
        except Exception as error:  # whatever an engine raises is reported as the root cause
            await engine.stop()
            logger.exception("raycluster: %s cannot start", name)
            ours = isinstance(error, EngineError)
            reasons[name] = str(error) if ours else explain(error, capture.text())
            logger.warning("raycluster: %s cannot start: %s", name, reasons[name])
            if ours:
                break
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(MARK + told) from None


def missing_path(source: str) -> str:
    """Return what to tell when `source` is a path and nothing is there, or ""."""
    local = source.startswith(("/", "./", "../", "~"))
    if not local or Path(source).expanduser().exists():
        return ""
    return f"the model {source} is not on the node {ray.util.get_node_ip_address()}"


def load_secrets(path: str) -> None:
    """Put what the JSON file at `path` holds into the environment; `path` may hold $NAMES."""
    if not path:
        return
    try:
        os.environ.update(json.loads(Path(os.path.expandvars(path)).read_text()))
    except (OSError, TypeError, ValueError) as error:
        kind = type(error).__name__  # the error's own text may quote a secret
        raise RuntimeError(f"{MARK}the secrets in {path} cannot be read: {kind}") from None
