"""The Serve application of one model: a replica holds the engine and serves the engine's own API.

Serve imports this file in a task before it starts replicas: it imports no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from prometheus_client import REGISTRY
from ray import serve
from ray.serve import Application

from raycluster.serve import engines
from raycluster.serve.asgi_wrapper import AsgiWrapper, refuse
from raycluster.serve.bind_addresses import listen_privately
from raycluster.serve.capture import Capture
from raycluster.serve.engine_failures import Records, folder, verdict
from raycluster.serve.engines import ASGI, Engine, EngineError, Message, Receive, Send
from raycluster.serve.engines.inside.guard import Guard
from raycluster.serve.engines.inside.key import ASKED, OWNER
from raycluster.serve.engines.inside.usage import usage
from raycluster.serve.engines.server import Place
from raycluster.serve.figures import ours, parsed, written
from raycluster.serve.first_to_go import go_first
from raycluster.serve.metrics import (
    EXPOSED,
    PREFIXES,
    Metrics,
    Mirror,
    Sample,
    own_text,
    ray_gauge,
    samples,
)
from raycluster.serve.metrics_history import MetricsHistory
from raycluster.serve.model_refs import is_path
from raycluster.serve.node_files import load_secrets
from raycluster.serve.ready import Readiness, questions
from raycluster.serve.rootcause import MARK, explain, why_dead
from raycluster.serve.settings import DEPLOYMENT, OFFSET, ModelSettings
from raycluster.serve.shared_quotas import RayStore, SharedQuotas

logger = logging.getLogger("ray.serve")

FIGURES_S = 5.0
LOOK_S = 0.5
QUIET = 4
"""Looks in a row at an engine without requests before it is ended: HAProxies that were replaced,
and do not know it, may still bring one."""

LISTEN_S = 30.0
"""Seconds for an engine's server to take connections, when the engine has started."""

DEFAULT_OFFSET = 333
RUNNING = "running_requests"
"""Serve's own name for what a replica has; what `record_autoscaling_stats` says goes before it."""

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
        go_first()
        self._told = told
        self._settings = ModelSettings.from_json(told)
        self._offset = int(os.environ.get(OFFSET, DEFAULT_OFFSET))
        self._listening = listen_privately(ray.util.get_node_ip_address(), self._offset)
        load_secrets(self._settings.secrets_path)
        self._front = Door()
        self._running: Running | None = None

    async def __serve_build_asgi_app__(self) -> ASGI:
        return self._front

    async def reconfigure(self, _: object) -> None:
        """Start the engine: Serve calls this when the replica's port is known, before it serves.

        Serve calls it again when nothing that concerns us has changed.
        """
        if self._running is None:
            port = self._listening.port + self._offset
            root = f"/m/{serve.get_replica_context().app_name}"
            place = Place(self._listening.address, port, root)
            self._running = await Running.start(self._settings, self._told, place)
            self._front.leads_to = self._running.front

    async def check_health(self) -> None:
        if self._running is not None:
            await self._running.check()

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """Return, by Serve's own name for it, how many requests there are, if Serve cannot know."""
        return await self._running.load() if self._running is not None else {}

    async def __del__(self) -> None:
        if running := getattr(self, "_running", None):
            await running.end()


class Running:
    """A started engine, and all that is told and counted of it."""

    def __init__(self, engine: Engine, app: ASGI, watch: Watch | None) -> None:
        self._engine = engine
        self._watch = watch
        self._app = app
        self._beside: list[asyncio.Future[None]] = []
        self._load = 0.0
        self._quotas: SharedQuotas | None = None
        self._count: Callable[[], int] | None = None
        self.front: ASGI = app

    @classmethod
    async def start(cls, settings: ModelSettings, told: Mapping[str, Any], place: Place) -> Running:
        """Start the engine that comes first, or the one that takes its place."""
        metrics = Metrics(settings.name)
        began = time.monotonic()
        root = os.environ.get("RAYCLUSTER_ROOT") if settings.engine == "auto" else ""
        watch = Watch(root, told) if root else None
        engine, app, reason = await start(
            settings, watch.verdict() if watch else "", tokens(metrics, settings.name), place
        )
        phases = {**engine.phases, "total": time.monotonic() - began}
        report = {
            "engine": engine.name,
            "reason": reason,
            "model": settings.name,
            "pid": os.getpid(),
            "versions": {
                "python": platform.python_version(),
                "ray": ray.__version__,
                **engine.versions,
            },
            "seconds": {phase: round(took, 2) for phase, took in phases.items()},
        }
        metrics.started(engine.name, reason, phases)
        metrics.asked(engine.name, engine.own_tokens)
        running = cls(engine, app, watch)
        running._tell(settings, report, metrics, place)
        running._quotas = SharedQuotas(engine.quotas, RayStore())
        running._begin(running._quotas.run())
        await asyncio.wait_for(listened(place), LISTEN_S)
        logger.info("raycluster: %s", json.dumps(report))
        return running

    def _tell(
        self, settings: ModelSettings, report: Mapping[str, Any], metrics: Metrics, place: Place
    ) -> None:
        asked = partial(metrics.asked, self._engine.name)
        readiness = Readiness(self._app, questions(settings.name), generated=asked)
        figures = self._engine.figures
        if figures is None:
            recent = MetricsHistory()
            front = AsgiWrapper(self._app, report, metrics, readiness, recent)
            counted = Counted(Guard(front, settings.name))
            self.front, self._count = counted, counted.count
            self._begin(Mirror(ray_gauge).run(), recent.run(), serve_at(self.front, place))
            return

        def also(text: str) -> str:
            return own_text() + written(ours(text, settings.name, self._engine.name))

        def every() -> Iterator[Sample]:
            yield from samples(REGISTRY, EXPOSED)
            for name, labels, value in parsed(figures.last):
                theirs = name.startswith(PREFIXES) and not name.startswith(EXPOSED)
                if theirs and not name.endswith("_created"):
                    yield name.replace(":", "_"), name, labels, value

        figures.also = also
        self.front = AsgiWrapper(
            self._app, report, metrics, readiness, figures, figures=figures.newest
        )
        self._begin(figures.run(), Mirror(ray_gauge, every).run())

    def _begin(self, *work: Coroutine[Any, Any, None]) -> None:
        self._beside += [asyncio.ensure_future(each) for each in work]

    async def check(self) -> None:
        """Raise when the engine is dead, and keep that on record."""
        if self._watch and self._engine.name == "vllm":
            await self._watch.check(self._engine)
        else:
            await self._engine.check()

    async def load(self) -> Mapping[str, float]:
        """Return how many requests there are; Serve knows only of those by its own way."""
        if self._count is not None:
            return {RUNNING: self._count()}
        figures = self._engine.figures
        if figures is None:
            return {}
        try:
            self._load = await asyncio.wait_for(figures.load(), FIGURES_S)
        except Exception as error:
            logger.warning("raycluster: the engine's load is unknown: %r", error)
        return {RUNNING: self._load}

    async def end(self) -> None:
        """End the engine when it has no more requests; Serve ends the replica when it is late."""
        began = time.monotonic()
        quiet = 0
        with contextlib.suppress(Exception):  # there is nothing to wait for in a dead engine
            while quiet < QUIET:
                await self._engine.check()
                quiet = 0 if (await self.load()).get(RUNNING) else quiet + 1
                await asyncio.sleep(LOOK_S)
        took = time.monotonic() - began
        logger.info("raycluster: the engine finished its requests after %.1f s", took)
        for task in self._beside:
            task.cancel()
        if self._quotas is not None:
            with contextlib.suppress(Exception):  # of the last second
                await asyncio.wait_for(self._quotas.once(), FIGURES_S)
        await self._engine.stop()
        if self._watch is not None:
            self._watch.ended()


class Counted:
    """An application that knows how many requests it has, by whichever of its ports they came."""

    def __init__(self, app: ASGI) -> None:
        self._app = app
        self._now = 0

    def count(self) -> int:
        """Return how many there are."""
        return self._now

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1


class Door:
    """The application that Serve is given before there is an engine; nobody comes so early."""

    leads_to: ASGI | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # an engine begins and ends by other ways
            while (kind := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{kind}.complete"})
            await send({"type": f"{kind}.complete"})
        elif self.leads_to is not None:
            await self.leads_to(scope, receive, send)
        elif scope["type"] == "http":
            await refuse(send, 503, "the engine is starting")


def tokens(metrics: Metrics, model: str) -> Callable[[str, int, int], None]:
    """Return what counts the tokens of an engine in this process, also by the key's owner."""

    def count(engine: str, prompt: int, generated: int) -> None:
        metrics.tokens(engine, prompt, generated)
        usage().took(model, OWNER.get(), prompt, 0, generated)
        if asked := ASKED.get():
            asked.took(prompt + generated)

    return count


async def serve_at(app: ASGI, place: Place) -> None:
    """Serve an application that is in this process at the place of a server of its own."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=place.host,
        port=place.port,
        lifespan="off",
        access_log=False,
        log_config=None,  # which would close Serve's own handlers
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    await server.serve()


async def listened(place: Place) -> None:
    """Return when somebody listens there: HAProxy looks as soon as it knows of the replica."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(place.host, place.port)
            writer.close()
            return
        await asyncio.sleep(0.05)


class Watch:
    """Keeps the records of vLLM's failures for the deployment whose arguments are `told`."""

    def __init__(self, root: str, told: Mapping[str, Any]) -> None:
        context = serve.get_replica_context()
        node = ray.get_runtime_context().get_node_id()
        self._records = Records(folder(root, [context.app_name, told]), node)
        self._capture = Capture()

    def verdict(self) -> str:
        """Return why vLLM must not be tried now, or ""."""
        return verdict(self._records.failures(), time.time())

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
    settings: ModelSettings, died: str, count: Callable[[str, int, int], None], place: Place
) -> tuple[Engine, ASGI, str]:
    """Return a started engine, its application, and why it is not the one that comes first.

    `died` is why vLLM must not come first, or ""; `count` takes an engine's name and tokens.
    Raises RuntimeError, whose only line is the marked root cause.
    """
    for source in (settings.source, *settings.adapters.values()):
        if missing := missing_path(source):
            raise RuntimeError(MARK + missing)
    reasons = {"vllm": died} if died else {}
    for name in order(settings.engine, died):
        capture = Capture()
        engine = engines.make(name, place)
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
    return f"the model {source} does not exist on the node {ray.util.get_node_ip_address()}"
