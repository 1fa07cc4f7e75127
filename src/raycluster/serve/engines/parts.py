"""The further parts of an engine over several hosts: a process of vLLM each, in an actor.

Serve's placement group has a bundle for each part. The replica has the first part; it starts an
actor in each further bundle, which runs `vllm serve --headless` with a keeper of its own. vLLM's
processes find each other at the address of the first; Ray has no part in what they say. An actor
ends with the replica, and its processes with it; a part that ends is the end of the replica.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raycluster.serve.bind_addresses import GRPC_PORTS
from raycluster.serve.engines.server import Place
from raycluster.serve.engines.vllm import Share, VllmEngine
from raycluster.serve.first_to_go import go_first
from raycluster.serve.node_files import ADDRESS, load_secrets
from raycluster.serve.rootcause import one_line
from raycluster.serve.settings import ModelSettings

LATE_S = 30.0
"""Seconds for the first part to say why it cannot start, which may be why the others ended."""

Result = TypeVar("Result")


class PartEndedError(Exception):
    """A part on another host is not there any more."""


class Part:
    """One further part, in a process that Ray has started where the part's bundle is."""

    async def run(self, told: Mapping[str, Any], share: Share) -> str:
        """Serve it until it ends, and return why it did."""
        go_first()
        settings = ModelSettings.from_json(told)
        load_secrets(settings.secrets_path)
        why = await VllmEngine(Place(here(), 0)).serve_part(settings, share)
        return f"on {here()}: {why}"


class Parts:
    """All parts but the first; `share` is that of the first."""

    def __init__(self, settings: ModelSettings) -> None:
        many = settings.spread
        self.share = Share(0, many, here(), free_port(here()))
        group = PlacementGroupSchedulingStrategy(ray.util.get_current_placement_group())
        takes = {"num_cpus": 0.0, "num_gpus": settings.num_gpus / many}
        if not settings.num_gpus:
            takes = {"num_cpus": settings.num_cpus}
        made = ray.remote(Part).options(**takes, scheduling_strategy=group, max_restarts=0)
        self._actors = [made.remote() for _ in range(1, many)]
        self._ends = [
            asyncio.ensure_future(_end(actor.run.remote(settings.to_json(), self.share.of_rank(n))))
            for n, actor in enumerate(self._actors, start=1)
        ]

    async def beside(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what the first part's own work returns; raises PartEndedError when one ends."""
        own = asyncio.ensure_future(work)
        try:
            await asyncio.wait({own, *self._ends}, return_when=asyncio.FIRST_COMPLETED)
            if not own.done():
                await asyncio.wait({own}, timeout=LATE_S)
            if not own.done():
                self.check()
            return own.result()
        finally:
            own.cancel()

    def check(self) -> None:
        """Raise PartEndedError when one of them has ended."""
        for end in self._ends:
            if end.done():
                raise PartEndedError(end.result())

    def stop(self) -> None:
        """End them all."""
        for end in self._ends:
            end.cancel()
        for actor in self._actors:
            with suppress(Exception):  # it may be gone
                ray.kill(actor)


async def _end(said: Any) -> str:  # noqa: ANN401  # Ray's reference to a text
    """Return why a part ended, however it did."""
    try:
        return str(await said)
    except Exception as error:
        return one_line(error)


def here() -> str:
    """Return the address of this node at which the others reach it."""
    return os.environ.get(ADDRESS) or str(ray.util.get_node_ip_address())


def free_port(address: str) -> int:
    """Return a port for the parts to meet, of those that replicas may use, where there are such."""
    first, _, last = os.environ.get(GRPC_PORTS, "").partition("-")
    ports = range(int(first), int(last) + 1) if last else range(0, 1)
    for port in random.sample(ports, len(ports)):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError(f"none of the ports {first} to {last} is free")
