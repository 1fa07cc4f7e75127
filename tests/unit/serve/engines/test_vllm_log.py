from __future__ import annotations

import pytest

from raycluster.serve.engines.vllm_log import phases

INIT = "init engine (profile, create kv cache, warmup model) took"
CPU = f"""
(EngineCore pid=5310) INFO 11-23 18:36:45 [default_loader.py:501] Loading weights took 0.23 seconds
(EngineCore pid=5310) INFO [cpu_model_runner.py:87] Warming up model for the compilation...
(EngineCore pid=5310) INFO 11-23 18:38:30 [core.py:402] {INIT} 95.50 s
"""
GPU = f"""
INFO 11-23 18:36:45 [default_loader.py:501] Loading weights took 0.23 seconds
INFO 11-23 18:38:30 [core.py:385] {INIT} 95.50 s (compilation: 90.25 s)
"""
GPUS = f"""
(Worker_TP0 pid=1) INFO 11-23 18:36:45 [default_loader.py:501] Loading weights took 1.50 seconds
(Worker_TP1 pid=2) INFO 11-23 18:36:45 [default_loader.py:501] Loading weights took 1.75 seconds
(Worker_TP0 pid=1) INFO 11-23 [gpu_model_runner.py:1] Model loading took 0.93 GiB memory and 2.125 seconds
(EngineCore pid=3) INFO 11-23 18:38:30 [core.py:385] {INIT} 12.00 s (compilation: 8.00 s — language_model: 6.00 s, encoder: 2.00 s)
"""  # noqa: E501  # lines as vLLM writes them
EAGER = f"INFO [default_loader.py:501] Loading weights took 0.23 seconds\nINFO {INIT} 1.50 s\n"


@pytest.mark.parametrize(
    ("log", "seconds", "parts"),
    [
        (CPU, 110, {"engine": 14.27, "load": 0.23, "compile": 95.5}),
        (GPU, 110, {"engine": 14.27, "load": 0.23, "compile": 90.25, "warm_up": 5.25}),
        (GPUS, 20, {"engine": 5.875, "load": 2.125, "compile": 8.0, "warm_up": 4.0}),
        (EAGER, 10, {"engine": 8.27, "load": 0.23, "warm_up": 1.5}),
        ("nothing that is known", 10, {"engine": 10.0}),
        (GPU, 50, {"engine": 0.0, "load": 0.23, "compile": 90.25, "warm_up": 5.25}),
    ],
)
def test_parts_of_a_start(log: str, seconds: float, parts: dict[str, float]) -> None:
    assert phases(log, seconds) == pytest.approx(parts)
