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
    "cpu": ("Warming up model for the compilation...", "v1.worker.cpu_model_runner"),
}
"""The texts that vLLM logs and the modules that do so; the last number is seconds. Seen in 0.32.0.

"init" ends with "compile" where something was compiled or read from the cache. CPUs have no "load"
and no "compile", and write "cpu" where they compile, which is nearly all of "init" then.
"""


def phases(log: str, engine_s: float) -> dict[str, float]:
    """Return the seconds of each part of the engine's start, which together are `engine_s`.

    "engine" is what is left: its process, its imports, its memory. Several processes of one engine
    work side by side, so the slowest counts.
    """
    load = _seconds(log, "load") or _seconds(log, "weights")
    init, compiled = _seconds(log, "init"), _seconds(log, "compile")
    if not compiled and LOGGED["cpu"][0] in log:
        compiled = init
    parts = {"load": load, "compile": compiled, "warm_up": max(0.0, init - compiled)}
    rest = max(0.0, engine_s - sum(parts.values()))
    return {"engine": rest} | {name: value for name, value in parts.items() if value}


def _seconds(log: str, name: str) -> float:
    """Return the largest number that stands for the last %-field of the text in `log`, or 0."""
    fields = re.split(r"%[.\d]*[sf]", LOGGED[name][0])
    pattern = r"([\d.]+)".join(re.escape(part) for part in fields)
    found = re.findall(pattern, log)
    return max((float(hit[-1] if isinstance(hit, tuple) else hit) for hit in found), default=0.0)
