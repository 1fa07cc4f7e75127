"""Which models a node must hold before replicas start.

Pure: the laptop makes the order, `fetch` on the node carries it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelRef:
    """A hub id or a path, and the engine arguments that matter for what is read of it."""

    source: str
    revision: str = "main"
    load_format: str = "auto"
    cache_dir: str | None = None
    weights: bool = True

    @property
    def key(self) -> str:
        """Tells apart what is read of one source."""
        return f"{self.revision} {self.load_format} {self.weights}"


def is_path(source: str) -> bool:
    """Tell whether this names a file or folder of the nodes."""
    return source.startswith(("/", "./", "../", "~"))


def model_refs(model: Mapping[str, Any]) -> tuple[ModelRef, ...]:
    """Return what a model, as `ModelSettings.to_json` tells it, reads.

    A draft model and a tokenizer of its own are models of the hub too. What is neither a path nor a
    hub id (a bucket, a file of a repository) is left to the engine.
    """
    found = _wanted(
        model["source"], {k.replace("-", "_"): v for k, v in model["engine_args"].items()}
    )
    return tuple(w for w in found if is_path(w.source) or HUB_ID.fullmatch(w.source))


def _wanted(source: str, arguments: Mapping[str, Any]) -> Iterator[ModelRef]:
    revision = arguments.get("revision") or "main"
    cache_dir = arguments.get("download_dir")
    yield ModelRef(source, revision, arguments.get("load_format") or "auto", cache_dir)
    if tokenizer := arguments.get("tokenizer"):
        yield ModelRef(tokenizer, arguments.get("tokenizer_revision") or "main", weights=False)
    draft = arguments.get("speculative_config") or {}
    draft = json.loads(draft) if isinstance(draft, str) else draft
    if name := draft.get("model"):
        yield ModelRef(name, draft.get("revision") or "main", cache_dir=cache_dir)


def order(models: Sequence[ModelRef], *, verify: bool, secrets_path: str) -> str:
    """Return what `fetch` is told on its command line."""
    plain = [asdict(model) for model in models]
    return json.dumps({"models": plain, "verify": verify, "secrets_path": secrets_path})


def differences(by_host: Mapping[str, Mapping[str, str]]) -> str:
    """Return the first difference between the hosts' files (name -> size and digest), or ""."""
    hosts = list(by_host)
    for host in hosts[1:]:
        one, other = by_host[hosts[0]], by_host[host]
        for name in sorted(one.keys() | other.keys()):
            if name not in other or name not in one:
                absent = host if name not in other else hosts[0]
                return f"{name} is not on {absent}"
            if one[name] != other[name]:
                what = "size" if one[name].split()[:1] != other[name].split()[:1] else "content"
                return f"{name} has another {what} on {host} than on {hosts[0]}"
    return ""


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
