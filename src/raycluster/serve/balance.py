"""How HAProxy chooses a replica of a model: lines added to the configuration that Serve wrote.

Serve knows one rule for all applications, the fewest connections; a request router of Serve's own
is not asked where HAProxy is in front.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

SESSION_HEADER = "x-session-id"
"""Requests with the same value go to the same replica; it is the name that Ray Serve uses."""

SCRIPT = Path(__file__).with_name("prefix.lua")
"""Finds in a body what a request with `prefix` goes by."""

MOST_LOAD = 200
"""Percent of the mean load above which a replica gets no more requests for their prefix alone."""

TOGETHER = 8
"""Beyond so many requests at a time with one beginning, more of it tells them apart."""

PART, LONG_PART = 512, 16_384
"""Bytes of a text that count as its beginning, and those that count beyond TOGETHER."""

WEIGHT = 64
"""Of each server: it has 16 times as many points on the ring, and so nearly a like share of it."""

PROMPTS = ("/completions", "/responses", "/messages", "/generate", "/invocations")
"""How the paths of requests with a prompt end; others are of no use to a cache."""

_KEY = "txn.raycluster_prefix"
_TABLE = "raycluster-prefixes-"
"""Begins the name of the section of a backend that counts like requests; keys are counted in it."""

COUNTS = "stick-table type integer size 100k expire 10s store conn_cur"

_MANY = f"if {{ sc0_conn_cur gt {TOGETHER} }}"

STICKY = (f"balance hdr({SESSION_HEADER})", "hash-type consistent")
PREFIX = (
    "option http-buffer-request",
    f"http-request set-var({_KEY}) req.body,lua.raycluster_prefix({PART})"
    f" if METH_POST {{ path_end {' '.join(PROMPTS)} }}",
    f"http-request set-var({_KEY}) req.fhdr({SESSION_HEADER})"
    f" if {{ req.fhdr({SESSION_HEADER}) -m len gt 0 }}"
    f" !{{ var({_KEY}) -m beg prompt_cache_key= }}",
    f"http-request track-sc0 var({_KEY}),xxh32 table {_TABLE} if {{ var({_KEY}) -m found }}",
    f"http-request set-var({_KEY}) req.body,lua.raycluster_prefix({LONG_PART}) {_MANY}",
    f"http-request track-sc1 var({_KEY}),xxh32 table {_TABLE} {_MANY}",
    f"http-request unset-var({_KEY}) if {{ sc1_conn_cur gt {TOGETHER} }}",
    f"balance hash var({_KEY})",
    "hash-type consistent",
    f"hash-balance-factor {MOST_LOAD}",
)
LINES: Mapping[str, Sequence[str]] = {"sticky": STICKY, "prefix": PREFIX}


def balanced(config: str, routing: Mapping[str, str]) -> str:
    """Return the configuration in which applications are balanced as `routing` says (by name).

    With one replica there is nothing to choose, and nothing is added.
    """
    parts = re.split(r"(?m)^(?=\S)", config)
    chosen = {f"backend http-{app}\n": LINES.get(rule, ()) for app, rule in routing.items()}
    made = "".join(_with(part, chosen.get(part[: part.find("\n") + 1], ())) for part in parts)
    if PREFIX[-1] not in made:
        return made
    loaded = f"global\n    lua-load-per-thread '{SCRIPT}'\n"
    with_script = re.sub(r"(?m)^global\n", lambda _: loaded, made, count=1)
    return with_script if with_script != made else config


def _with(backend: str, lines: Sequence[str]) -> str:
    """Return the section with the lines, and what hashing knows its servers by and shares by.

    A section has one table at most, so that of prefixes is one more section.
    """
    replicas = re.findall(r"(?m)^\s*server (?!.* backup$).*$", backend)
    if not lines or len(replicas) < 2:
        return backend
    head, _, rest = backend.partition("\n")
    named = re.sub(r"(?m)^(\s*server (\S+) .*)$", _identified, rest)
    table = _TABLE + head.removeprefix("backend http-")
    added = "".join(f"    {line}\n" for line in lines).replace(f"table {_TABLE}", f"table {table}")
    section = f"{head}\n{added}{named}"
    if f"table {table}" not in added:
        return section
    return f"{section.rstrip()}\nbackend {table}\n    {COUNTS}\n"


def _identified(line: re.Match[str]) -> str:
    number = 1 + zlib.crc32(line[2].encode()) % 0x7FFFFFFE
    return f"{line[1]} id {number} weight {WEIGHT}"
