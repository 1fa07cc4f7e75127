"""What `up` has written on this node: who belongs to the cluster, and the secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

from raycluster.serve.rootcause import MARK

FILE = "members.json"
ADDRESS = "RAYCLUSTER_ADDRESS"
"""The variable that holds the address at which the other nodes reach this one."""


def members() -> int:
    """Return the number of hosts; 0 where nobody has told."""
    try:
        told = json.loads((Path(os.environ["RAYCLUSTER_ROOT"]) / FILE).read_text())
        return len(told["members"] if isinstance(told, dict) else told)
    except (KeyError, OSError, ValueError, TypeError):
        return 0


def own_address() -> str:
    """Return where this node's HTTP may be reached by the others, or "" where there is none."""
    return os.environ.get(ADDRESS, "") if members() > 1 else ""


def load_secrets(path: str) -> None:
    """Put what the JSON file at `path` holds into the environment; `path` may hold $NAMES."""
    if not path:
        return
    try:
        os.environ.update(json.loads(Path(os.path.expandvars(path)).read_text()))
    except (OSError, TypeError, ValueError) as error:
        kind = type(error).__name__  # the error's own text may quote a secret
        raise RuntimeError(f"{MARK}the secrets in {path} cannot be read: {kind}") from None
