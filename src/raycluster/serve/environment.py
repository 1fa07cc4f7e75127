"""Where the vLLM is that serves a model, when that is not the node's own; pure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Environment:
    """One at `python`, or made of `requirements` by uv.

    `version` is that of the Python which is made; without it, it is the node's own.
    """

    python: str = ""
    requirements: tuple[str, ...] = ()
    uv_args: tuple[str, ...] = ()
    version: str = ""

    @property
    def name(self) -> str:
        """Its folder's name, "" where it is not made."""
        if self.python:
            return ""
        facts = json.dumps([self.requirements, self.uv_args, self.version])
        return f"vllm-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    @property
    def program(self) -> str:
        """The path of its Python on this node."""
        if self.python:
            return str(Path(self.python).expanduser())
        return str(folder(self.name) / "bin" / "python")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, equal to what is read back of them."""
        lists = {"requirements": [*self.requirements], "uv_args": [*self.uv_args]}
        return asdict(self) | lists

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Environment:
        """Return what `to_json` was called on."""
        lists = {name: tuple(plain[name]) for name in ("requirements", "uv_args")}
        return cls(**{**plain, **lists})


def folder(name: str = "") -> Path:
    """Return where an environment is made on this node, or the folder of all."""
    return Path(os.environ["RAYCLUSTER_ROOT"], "environments", name)
