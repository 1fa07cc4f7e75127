"""The job of `--offline` without Ray: `without_ray.py FOLDER SECONDS`.

Everything is the job's own but the pipeline: one stage in this process gets the pieces, and waits
SECONDS after each.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from raycluster.serve.offline.job import ask_all
from raycluster.serve.offline.order import ORDER_FILE, Order, Shares, ranges
from raycluster.serve.offline.stage import TableStage


def blocks(order: Order, source: Path, pause: float) -> Iterator[dict[str, list[Any]]]:
    with asyncio.Runner() as runner:
        stream = together(order, source, pause)
        while (block := runner.run(following(stream))) is not None:
            yield block


async def following(stream: AsyncIterator[dict[str, list[Any]]]) -> dict[str, list[Any]] | None:
    found: dict[str, list[Any]] | None = await anext(stream, None)
    return found


async def together(order: Order, source: Path, pause: float) -> AsyncIterator[dict[str, list[Any]]]:
    """Yield what the stage yields, of as many pieces at once as Ray Data would give it."""
    shares = Shares.of(1, order.concurrency)
    stage = TableStage(order.encode(), shares.limit)
    queue: asyncio.Queue[dict[str, list[Any]] | None] = asyncio.Queue()
    content = source.read_bytes()
    pieces = ranges(content.splitlines(keepends=True), shares.piece)

    async def actor() -> None:
        for begin, size in pieces:
            async for block in stage.ask(content[begin : begin + size].splitlines()):
                await queue.put(block)
            await asyncio.sleep(pause)
        await queue.put(None)

    tasks = [asyncio.create_task(actor()) for _ in range(shares.pieces)]
    over = 0
    while over < len(tasks):
        block = await queue.get()
        if block is None:
            over += 1
        else:
            yield block


def main() -> None:
    folder, pause = Path(sys.argv[1]), float(sys.argv[2])
    order = Order.decode((folder / ORDER_FILE).read_bytes())
    state = ask_all(folder, order, lambda source: blocks(order, source, pause))
    sys.exit(bool(state.error))


if __name__ == "__main__":
    main()
