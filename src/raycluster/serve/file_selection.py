"""Which of a model's files an engine reads; pure, and the same here and on the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
"""Forms of weights, the best first: of these an engine takes one."""
NEVER = (
    "original/*",
    "onnx/*",
    "*.gguf",
    "*.onnx",
    "*.h5",
    "*.msgpack",
    "*.pth",
    "*.ckpt",
    ".git*",
)


def needed_files(names: Sequence[str], load_format: str, *, weights: bool) -> tuple[str, ...]:
    """Return which of a repository's files an engine reads, given how it loads weights."""
    kept = [n for n in names if not any(fnmatch(n, pattern) for pattern in NEVER)]
    forms = {form: [n for n in kept if fnmatch(n, form)] for form in WEIGHTS}
    every = {n for found in forms.values() for n in found}
    chosen: list[str] = []
    if weights and load_format != "dummy":
        order = ("*.pt", *WEIGHTS) if load_format == "pt" else WEIGHTS
        chosen = next((forms[form] for form in order if forms[form]), [])
        chosen = _without_twins(chosen, kept, load_format)
    return tuple(n for n in kept if n not in every or n in chosen)


def _without_twins(chosen: list[str], names: list[str], load_format: str) -> list[str]:
    """Return the weights once, where a repository has them in Mistral's own form as well."""
    own = [n for n in chosen if fnmatch(n, "consolidated*.safetensors")]
    others = [n for n in chosen if n not in own]
    if not own or not others:
        return chosen
    return own if load_format == "mistral" or "config.json" not in names else others
