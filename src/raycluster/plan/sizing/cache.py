"""The keys and values of one request of full length on one device, as vLLM 0.32 counts; pure.

vLLM asks for this much before it starts (`_max_memory_usage_bytes_from_groups` of its
`v1/core/kv_cache_utils.py`). What is left open by a spec is taken at its smallest, so that this is
never more than vLLM's: see docs/decisions/planning.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raycluster.plan.sizing.layers import FULL, Layer

GPU_BLOCK, CPU_BLOCK, LATENT_CPU_BLOCK = 16, 128, 16
"""Tokens of a block: a GPU's kernels want this many or a multiple of it."""
SLIGHTLY_MORE = 1.5
"""Up to so many times the layers of the rarest kind, groups are as large as the most common."""


@dataclass(frozen=True)
class CacheArguments:
    """What an engine's arguments say of its cache.

    `batch` are the tokens of one step, and `steps` are those in flight at once. `block` is None
    where the device decides. `promoted` says that layers with a window keep all tokens beside
    others that do.
    """

    batch: int = 2048
    steps: int = 1
    block: int | None = None
    promoted: bool = False


def blocks(layer: Layer, length: int, engine: CacheArguments, block: int) -> int:
    """Return the blocks that a layer keeps at most: vLLM's `max_admission_blocks_per_request`."""
    flight = engine.batch * engine.steps
    if layer.kind == "sliding":
        return math.ceil(min(layer.tokens - 1 + flight, length) / block) + 1
    if layer.kind == "chunked":
        return math.ceil(min(layer.tokens + flight, length) / block)
    return math.ceil(length / block)


def tokens_kept(layers: Sequence[Layer], length: int, engine: CacheArguments, block: int) -> int:
    """Return the tokens of one layer that all layers and the padding between them come to.

    vLLM gives all kinds of layers groups of one size, and fills them up
    (`_get_kv_cache_groups_uniform_page_size`).
    """
    kinds = Counter(FULL if engine.promoted and FULL in layers else each for each in layers)
    if not kinds:
        return 0
    size, most = min(kinds.values()), max(kinds.values())
    if most < SLIGHTLY_MORE * size:
        size = most
    groups = (
        math.ceil(count / size) * blocks(kind, length, engine, block)
        for kind, count in kinds.items()
    )
    return sum(groups) * size * block
