"""Reads the secrets of this node into the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

from raycluster.serve.rootcause import MARK


def load_secrets(path: str) -> None:
    """Put what the JSON file at `path` holds into the environment; `path` may hold $NAMES."""
    if not path:
        return
    try:
        os.environ.update(json.loads(Path(os.path.expandvars(path)).read_text()))
    except (OSError, TypeError, ValueError) as error:
        kind = type(error).__name__  # the error's own text may quote a secret
        raise RuntimeError(f"{MARK}the secrets in {path} cannot be read: {kind}") from None
