"""Between replicas: what keys have used on each of them, in the store of Ray's head.

Each replica writes a record of its own and reads those of all: there is no other place that sums,
and a record outlives its replica. The store is that of Ray's own state, kept on the head's disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from raycluster.serve.engines.inside.quotas import DAY, FRESH_S, Used, read, summed, written

PERIOD_S = 0.5
"""Between two looks: with the time that a look takes, others know of a token within a second."""

TIMEOUT_S = 5.0
KEPT_S = 2 * DAY
"""How long a record stands that nobody writes any more."""

PREFIX, NAMESPACE = b"quotas/", b"raycluster"

logger = logging.getLogger("ray.serve")

Tell = Callable[[bytes], Awaitable[bytes]]
"""Tells an engine what was used elsewhere, and returns what was used there: see `Quotas`."""


class Store(Protocol):
    """Records by name."""

    def put(self, name: bytes, record: bytes) -> None: ...

    def all(self) -> Mapping[bytes, bytes]: ...

    def remove(self, name: bytes) -> None: ...


class RayStore:
    """Ray's own store of names and values, which Serve keeps its state in too."""

    @property
    def _client(self) -> Any:  # noqa: ANN401  # Ray's, made in C
        from ray.experimental.internal_kv import internal_kv_get_gcs_client

        return internal_kv_get_gcs_client()

    def put(self, name: bytes, record: bytes) -> None:
        """Write a record."""
        self._client.internal_kv_put(PREFIX + name, record, True, NAMESPACE, timeout=TIMEOUT_S)

    def all(self) -> Mapping[bytes, bytes]:
        """Return all records."""
        keys = self._client.internal_kv_keys(PREFIX, NAMESPACE, timeout=TIMEOUT_S)
        found = self._client.internal_kv_multi_get(keys, NAMESPACE, timeout=TIMEOUT_S)
        return {key.removeprefix(PREFIX): record for key, record in found.items()}

    def remove(self, name: bytes) -> None:
        """Remove a record."""
        self._client.internal_kv_del(PREFIX + name, False, NAMESPACE, timeout=TIMEOUT_S)


class SharedQuotas:
    """The part of one replica in them."""

    def __init__(
        self, tell: Tell, store: Store, clock: Callable[[], float] = time.time, name: bytes = b""
    ) -> None:
        self._tell = tell
        self._store = store
        self._clock = clock
        self._name = name or uuid.uuid4().hex.encode()
        self._limited = False
        self._written: object = {}
        self._failed = False

    async def run(self) -> None:
        """Tell and learn for ever.

        While the store is away each engine keeps to the limits by what it knows, and what is used
        elsewhere meanwhile comes on top.
        """
        while True:
            try:
                await self.once()
                self._failed = False
            except Exception as error:
                if not self._failed:
                    logger.warning("raycluster: what keys have used is not shared: %r", error)
                self._failed = True
            await asyncio.sleep(PERIOD_S)

    async def once(self) -> None:
        """Tell the engine what was used elsewhere, and the others what was used here."""
        others = await asyncio.to_thread(self._elsewhere) if self._limited else {}
        told = json.loads(await self._tell(json.dumps(written(others)).encode()))
        self._limited, used = told["limited"], told["used"]
        if used != self._written or any(each.held for each in read(used).values()):
            record = {"at": self._clock(), "used": used}
            await asyncio.to_thread(self._store.put, self._name, json.dumps(record).encode())
            self._written = used

    def _elsewhere(self) -> dict[str, Used]:
        now = self._clock()
        parts = []
        for name, text in self._store.all().items():
            at, used = _record(text)
            if at < now - KEPT_S:
                self._store.remove(name)
            elif name != self._name:
                for each in used.values():
                    each.held = each.held if at > now - FRESH_S else 0
                parts.append(used)
        return summed(parts)


def _record(text: bytes) -> tuple[float, dict[str, Used]]:
    try:
        record = json.loads(text)
        return float(record["at"]), read(record["used"])
    except (ValueError, TypeError, KeyError):
        return 0.0, {}
