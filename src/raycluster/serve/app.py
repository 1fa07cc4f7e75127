"""The Serve application of one model: a replica holds the engine and serves the engine's own API.

Serve imports this file in a task before it starts replicas: it imports no engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from raycluster.serve import engines
from raycluster.serve.capture import Capture
from raycluster.serve.deaths import Records, folder, verdict
from raycluster.serve.engines import ASGI, Engine, EngineError
from raycluster.serve.front import Front
from raycluster.serve.listen import listen_privately
from raycluster.serve.metrics import Metrics, Mirror, ray_gauge
from raycluster.serve.ready import Readiness, question
from raycluster.serve.recent import Recent
from raycluster.serve.rootcause import MARK, explain, why_dead
from raycluster.serve.secret_file import load_secrets
from raycluster.serve.settings import DEPLOYMENT, ModelSettings
from raycluster.serve.wanted import is_path

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
        listen_privately(ray.util.get_node_ip_address())
        settings = ModelSettings.from_json(told)
        load_secrets(settings.secrets_path)
        metrics = Metrics(settings.name)
        began = time.monotonic()
        root = os.environ.get("RAYCLUSTER_ROOT") if settings.engine == "auto" else ""
        self._watch = Watch(root, told) if root else None
        self._engine, self._app, reason = await start(
            settings, self._watch.verdict() if self._watch else "", metrics.tokens
        )
        phases = {**self._engine.phases, "total": time.monotonic() - began}
        self._report = {
            "engine": self._engine.name,
            "reason": reason,
            "model": settings.name,
            "pid": os.getpid(),
            "versions": {
                "python": platform.python_version(),
                "ray": ray.__version__,
                **self._engine.versions,
            },
            "seconds": {phase: round(took, 2) for phase, took in phases.items()},
        }
        metrics.started(self._engine.name, reason, phases)
        readiness = Readiness(
            self._app,
            question(self._engine.tasks, settings.name),
            generated=partial(metrics.asked, self._engine.name),
        )
        recent = Recent()
        self._front = Front(self._app, self._report, metrics, readiness, recent)
        self._beside = [asyncio.ensure_future(o.run()) for o in (Mirror(ray_gauge), recent)]
        logger.info("raycluster: %s", json.dumps(self._report))

    async def __serve_build_asgi_app__(self) -> ASGI:
        return self._front

    async def check_health(self) -> None:
        if self._watch and self._engine.name == "vllm":
            await self._watch.check(self._engine)
        else:
            await self._engine.check()

    async def __del__(self) -> None:
        for task in getattr(self, "_beside", ()):
            task.cancel()
        if engine := getattr(self, "_engine", None):
            await engine.stop()
        if watch := getattr(self, "_watch", None):
            watch.ended()


class Watch:
    """Keeps the records of vLLM's deaths for the deployment whose arguments are `told`."""

    def __init__(self, root: str, told: Mapping[str, Any]) -> None:
        context = serve.get_replica_context()
        node = ray.get_runtime_context().get_node_id()
        self._records = Records(folder(root, [context.app_name, told]), node)
        self._capture = Capture()

    def verdict(self) -> str:
        """Return why vLLM shall not be tried now, or ""."""
        return verdict(self._records.deaths(), time.time())

    async def check(self, engine: Engine) -> None:
        """Raise when the engine is dead, and keep that on record."""
        try:
            await engine.check()
        except Exception as error:  # any failed check ends the replica
            self._records.died(why_dead(error, self._capture.text()))
            raise
        self._records.alive()

    def ended(self) -> None:
        """Keep on record that the replica ends on purpose."""
        self._records.ended()


async def start(
    settings: ModelSettings, died: str, count: Callable[[str, int, int], None]
) -> tuple[Engine, ASGI, str]:
    """Return a started engine, its application, and why it is not the one that comes first.

    `died` is why vLLM shall not come first, or ""; `count` takes an engine's name and tokens.
    Raises RuntimeError, whose only line is the marked root cause.
    """
    for source in (settings.source, *settings.adapters.values()):
        if missing := missing_path(source):
            raise RuntimeError(MARK + missing)
    reasons = {"vllm": died} if died else {}
    for name in order(settings.engine, died):
        capture = Capture()
        engine = engines.make(name)
        try:
            app = await engine.start(settings, partial(count, name))
        except Exception as error:  # whatever an engine raises is reported as the root cause
            await engine.stop()
            logger.exception("raycluster: %s cannot start", name)
            ours = isinstance(error, EngineError)
            reasons[name] = str(error) if ours else explain(error, capture.text())
            logger.warning("raycluster: %s cannot start: %s", name, reasons[name])
            if ours:
                break
        else:
            return engine, app, "" if name == "vllm" else reasons.get("vllm", "")
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(MARK + told) from None


def order(engine: str, died: str) -> tuple[str, ...]:
    """Return the engines to try, the first that starts serves."""
    if engine != "auto":
        return (engine,)
    return ("transformers", "vllm") if died else ("vllm", "transformers")


def missing_path(source: str) -> str:
    """Return what to tell when `source` is a path and nothing is there, or ""."""
    if not is_path(source) or Path(source).expanduser().exists():
        return ""
    return f"the model {source} is not on the node {ray.util.get_node_ip_address()}"
