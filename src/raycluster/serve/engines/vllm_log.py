"""What vLLM's own log tells of a start: how long its parts took.

The engine is a process of its own; what it hands back when it is ready holds no times, and its log
does. A line that is not there costs the split and nothing else: its seconds stay in "engine".
"""

from __future__ import annotations

import re

LOGGED = {
    "load": ("Model loading took %s GiB memory and %.6f seconds", "v1.worker.gpu_model_runner"),
    "weights": ("Loading weights took %.2f seconds", "model_executor.model_loader.default_loader"),
    "init": ("init engine (profile, create kv cache, warmup model) took %.2f s", "v1.engine.core"),
    "compile": ("(compilation: %.2f s", "v1.engine.core"),
}
"""The texts that vLLM logs and the modules that do so; the last number is seconds. Seen in 0.32.0.

CPUs have no "load". "init" ends with "compile" where something was compiled or read from the cache.
"""


def phases(log: str, engine_s: float) -> dict[str, float]:
    """Return the seconds of each part of the engine's start, which together are `engine_s`.

    "engine" is what is left: its process, its imports, its memory. Several processes of one engine
    work side by side, so the slowest counts.
    """
    took = {name: seconds(log, text) for name, (text, _) in LOGGED.items()}
    load = took["load"] or took["weights"]
    parts = {
        "load": load,
        "compile": took["compile"],
        "warm_up": max(0.0, took["init"] - took["compile"]),
    }
    rest = max(0.0, engine_s - sum(parts.values()))
    return {"engine": rest} | {name: value for name, value in parts.items() if value}


def seconds(log: str, text: str) -> float:
    """Return the largest number that stands for the last %-field of `text` in `log`, or 0."""
    fields = re.split(r"%[.\d]*[sf]", text)
    pattern = r"([\d.]+)".join(re.escape(part) for part in fields)
    found = re.findall(pattern, log)
    return max((float(hit[-1] if isinstance(hit, tuple) else hit) for hit in found), default=0.0)
