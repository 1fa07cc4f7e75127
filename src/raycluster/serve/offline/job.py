"""The job: `python -m raycluster.serve.offline.job FOLDER`, on the head.

It reads the order and the input there and writes each result to the results file as it comes. A
piece whose node dies is asked for again by Ray Data, and what was written before is not written
twice. What is missing at the end is asked for once more.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raycluster.serve.offline.order import (
    INPUT_FILE,
    ORDER_FILE,
    RESULTS_FILE,
    STATE_FILE,
    JobState,
    Order,
    Shares,
    decode_job,
    ranges,
)
from raycluster.serve.rootcause import root_cause

if TYPE_CHECKING:
    import pyarrow

PASSES = 3
STATE_S = 1.0
PIECES_A_READ = 64
Blocks = Iterator[Mapping[str, list[Any]]]


class ResultsFile:
    """The results file: each line once. `last` is the highest number of a line."""

    def __init__(self, folder: Path, last: int) -> None:
        self.state = JobState()
        self._folder = folder
        self._done = bytearray(last // 8 + 1)
        self._told = 0.0

    def has(self, line: int) -> bool:
        """Tell whether a line has its result."""
        return bool(self._done[line >> 3] >> (line & 7) & 1)

    def write(self, blocks: Blocks) -> None:
        """Write what the blocks hold, until one of them holds an error."""
        with (self._folder / RESULTS_FILE).open("ab") as file:
            for block in blocks:
                self._take(block, file)
                file.flush()
                if self.state.error:
                    return
                if time.monotonic() - self._told > STATE_S:
                    self.tell()

    def tell(self) -> None:
        """Write the state file, whole or not at all."""
        self._told = time.monotonic()
        new = self._folder / f"{STATE_FILE}.new"
        new.write_bytes(self.state.encode())
        new.replace(self._folder / STATE_FILE)

    def _take(self, block: Mapping[str, list[Any]], file: BinaryIO) -> None:
        for result, counts, error in zip(
            block["result"], block["counts"], block["error"], strict=True
        ):
            if counts:
                self.state.count(*json.loads(counts))
            if error:
                self.state.kind, self.state.error = json.loads(error)
            if result:
                line = int(result.partition(b'", ')[0].rpartition(b"-")[2])
                if not self.has(line):
                    self._done[line >> 3] |= 1 << (line & 7)
                    file.write(result)


def ask_all(folder: Path, order: Order, ask: Callable[[Path], Blocks]) -> JobState:
    """Write every result, and return how it ended; `ask` yields blocks for an input file."""
    results = ResultsFile(folder, order.last)
    source = folder / INPUT_FILE
    for number in range(PASSES):
        results.write(ask(source))
        if results.state.error:
            break
        left = folder / f"{INPUT_FILE}.{number + 1}"
        if not _left(source, left, results.has):
            break
        source = left
    results.state.over = True
    results.tell()
    return results.state


def _left(source: Path, left: Path, has: Callable[[int], bool]) -> int:
    """Write the lines without a result to another file; return how many these are."""
    count = 0
    with source.open("rb") as read, left.open("wb") as write:
        for line in read:
            if not has(decode_job(line).line):
                write.write(line)
                count += 1
    return count


def blocks(order: Order, source: Path) -> Blocks:
    """Yield the results of an input file from a pipeline over the cluster's nodes."""
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raycluster.serve.offline.stage import TableStage

    shares = Shares.of(sum(bool(node["Alive"]) for node in ray.nodes()), order.concurrency)
    with source.open("rb") as file:
        pieces = [{"begin": begin, "size": size} for begin, size in ranges(file, shares.piece)]
    if not pieces:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # what is yielded leaves at once, and does not gather
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pipeline = (
        ray.data.from_items(pieces, override_num_blocks=-(-len(pieces) // PIECES_A_READ))
        .map_batches(
            read,
            fn_args=(str(source),),
            batch_format="pyarrow",
            num_cpus=0,
            scheduling_strategy=here,
        )
        .map_batches(
            TableStage,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(order.encode(), shares.limit),
            num_cpus=0,
            scheduling_strategy="SPREAD",
            compute=ray.data.ActorPoolStrategy(
                size=shares.actors,
                max_tasks_in_flight_per_actor=shares.pieces,
                max_concurrent_calls_per_actor=shares.pieces,
            ),
        )
    )
    for table in pipeline.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield table.to_pydict()


def read(pieces: pyarrow.Table, source: str) -> Iterator[pyarrow.Table]:
    """Yield a table of `lines` for each piece of the file."""
    from pyarrow import table

    with Path(source).open("rb") as file:
        for piece in pieces.to_pylist():
            file.seek(piece["begin"])
            yield table({"lines": [file.read(piece["size"])]})


def main() -> None:
    """Carry out the order in the folder that the command line names; end with 1 on an error."""
    folder = Path(sys.argv[1])
    order = Order.decode((folder / ORDER_FILE).read_bytes())
    import ray

    try:
        ray.init()
        state = ask_all(folder, order, lambda source: blocks(order, source))
    except Exception as error:  # whatever Ray raises is what the person should read
        state = JobState(error=root_cause(f"{type(error).__name__}: {error}"), over=True)
        (folder / STATE_FILE).write_bytes(state.encode())
        raise
    sys.exit(bool(state.error))


if __name__ == "__main__":
    main()
