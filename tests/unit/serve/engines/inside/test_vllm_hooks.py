"""What is added to vLLM's classes, on stand-ins; `tests/node/test_inside_vllm.py` has vLLM."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raycluster.serve.engines.inside.key import OWNER
from raycluster.serve.engines.inside.vllm_hooks import count_in_vllm, let_go_in_vllm


class OutputProcessor:
    """Keeps the sequences that it is given."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(self, request: Any, _: object) -> None:
        stats = SimpleNamespace(num_generation_tokens=7)
        told = {"lora_name": request.lora, "request_id": request.request_id, "is_prefilling": False}
        more = {"detokenizer": None, "prompt_len": 5, "num_cached_tokens": 2}
        self.request_states[request.request_id] = SimpleNamespace(stats=stats, **told, **more)


class AsyncLLM:
    """Hands nothing over, since its client leaves."""

    def __init__(self) -> None:
        self.aborted: list[tuple[str, bool]] = []

    async def _add_request(self, _: object) -> None:
        raise asyncio.CancelledError

    async def abort(self, request_id: str, internal: bool) -> None:
        self.aborted.append((request_id, internal))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have our stand-ins imported as vLLM's classes, unchanged by another test."""
    for name in ("vllm", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, of in (("output_processor", OutputProcessor), ("async_llm", AsyncLLM)):
        module: Any = ModuleType(name)
        setattr(module, of.__name__, type(of.__name__, (of,), {}))
        monkeypatch.setitem(sys.modules, f"vllm.v1.engine.{name}", module)


def processor() -> Any:
    module: Any = sys.modules["vllm.v1.engine.output_processor"]
    return module.OutputProcessor()


@pytest.mark.parametrize(("lora", "model"), [(None, "m"), ("law", "law")])
def test_a_sequence_is_counted_when_vllm_lets_go_of_it(lora: str | None, model: str) -> None:
    took: list[tuple[object, ...]] = []
    count_in_vllm("m", SimpleNamespace(took=lambda *told: took.append(told)))  # type: ignore[arg-type]
    kept = processor()
    token = OWNER.set("alice")
    sampling = SimpleNamespace(max_tokens=9)
    kept.add_request(SimpleNamespace(request_id="1", lora=lora, sampling_params=sampling), None)
    OWNER.reset(token)
    assert took == []
    kept.request_states.pop("1")
    assert took == [(model, "alice", 5, 2, 7)]
    assert kept.request_states.pop("1", None) is None


def test_a_count_that_fails_stops_nothing() -> None:
    count_in_vllm("m", SimpleNamespace())  # type: ignore[arg-type]
    kept = processor()
    sampling = SimpleNamespace(max_tokens=9)
    kept.add_request(SimpleNamespace(request_id="1", lora=None, sampling_params=sampling), None)
    assert kept.request_states.pop("1").prompt_len == 5


def test_what_is_not_handed_over_is_aborted() -> None:
    let_go_in_vllm()
    module: Any = sys.modules["vllm.v1.engine.async_llm"]
    engine = module.AsyncLLM()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(engine._add_request(SimpleNamespace(request_id="1")))
    assert engine.aborted == [("1", True)]
