"""How HAProxy chooses a replica of a model: lines added to the configuration that Serve wrote.

Serve knows one rule for all applications, the fewest connections; a request router of Serve's own
is not asked where HAProxy is in front.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

SESSION_HEADER = "x-session-id"
"""Requests with the same value go to the same replica; it is the name that Ray Serve uses."""

PREFIX_BYTES = 512
"""The part of a prompt, and of each of a chat's first two messages, that tells it from others."""

MOST_LOAD = 150
"""Percent of the mean load above which a replica gets no more requests for their prefix alone."""

_KEYS = ("$.prompt", "$.messages[0].content", "$.messages[1].content")
_VARIABLES = tuple(f"txn.raycluster_{n}" for n in range(len(_KEYS)))
_TOGETHER = "".join(f"%[var({variable})]" for variable in _VARIABLES)

STICKY = (f"balance hdr({SESSION_HEADER})", "hash-type consistent")
PREFIX = (
    "option http-buffer-request",
    *(
        f"http-request set-var({variable}) req.body,json_query('{key}'),bytes(0,{PREFIX_BYTES})"
        for variable, key in zip(_VARIABLES, _KEYS, strict=True)
    ),
    *(
        f"http-request set-var-fmt(txn.raycluster_prefix) {_TOGETHER}"
        f" if {{ var({variable}) -m found }}"
        for variable in _VARIABLES[:2]
    ),
    "balance hash var(txn.raycluster_prefix)",
    "hash-type consistent",
    f"hash-balance-factor {MOST_LOAD}",
)
LINES: Mapping[str, Sequence[str]] = {"sticky": STICKY, "prefix": PREFIX}


def balanced(config: str, routing: Mapping[str, str]) -> str:
    """Return the configuration in which applications are balanced as `routing` says (by name)."""
    parts = re.split(r"(?m)^(?=\S)", config)
    chosen = {f"backend http-{app}\n": LINES.get(rule, ()) for app, rule in routing.items()}
    return "".join(_with(part, chosen.get(part[: part.find("\n") + 1], ())) for part in parts)


def _with(backend: str, lines: Sequence[str]) -> str:
    """Return the section with the lines, and ids by which hashing knows its servers again."""
    if not lines:
        return backend
    head, _, rest = backend.partition("\n")
    named = re.sub(r"(?m)^(\s*server (\S+) .*)$", _identified, rest)
    return f"{head}\n" + "".join(f"    {line}\n" for line in lines) + named


def _identified(line: re.Match[str]) -> str:
    return f"{line[1]} id {1 + zlib.crc32(line[2].encode()) % 0x7FFFFFFE}"
