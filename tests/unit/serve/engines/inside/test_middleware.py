from __future__ import annotations

import json

import pytest

from raycluster.serve.engines.inside import middleware
from raycluster.serve.engines.inside.middleware import QUOTAS_PATH, Middleware
from raycluster.serve.engines.inside.quotas import Quotas
from tests.unit.serve.engines.inside.test_guard import owned, post


def test_replicas_tell_what_is_used_elsewhere_and_clients_of_the_gateway_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Quotas()
    monkeypatch.setattr(middleware, "quotas", lambda: made)
    door = object.__new__(Middleware)
    others = (b'{"alice": [1, 2, 3, 4, 5, 6]}',)
    path = f"/m/a{QUOTAS_PATH}"
    status, body, _ = post(door, {}, path, others)
    assert (status, json.loads(body)) == (200, {"limited": False, "used": {}})
    assert post(door, owned(), path, others)[0] == 404
    assert post(door, {}, path, (b"{",))[0] == 404
