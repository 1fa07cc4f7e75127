"""A run that was cut short goes on: what its folder holds of levels that were over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raycluster.bench.load import Conditions, judged
from raycluster.bench.record import RequestRecord
from raycluster.bench.results import REQUESTS, UNREAD, level_of, read_levels
from raycluster.bench.schedule import Load, shape_of
from raycluster.bench.server import ServerFigures
from raycluster.bench.summary import Level
from raycluster.bench.verdict import Circumstances, Client
from raycluster.core.errors import RecordError, UsageError
from raycluster.core.stored_json import MOST, decode

RUN, ENDS, CUT = "run.json", "levels.jsonl", "requests-cut.jsonl"
"""What the run was to be; a line for each level that is over; records of levels that were not."""

_HINT = "choose another folder, or use the same command as the first time"


@dataclass(frozen=True)
class LevelEnd:
    """What a level's records do not tell, as it is stored.

    `load` is the shape, `numbers` are the first and the end of those of its requests; `generated`
    and `server` as in Circumstances.
    """

    load: dict[str, Any]
    numbers: tuple[int, int]
    client: Client
    repeated: int
    salted: bool
    generated: int | None = None
    server: ServerFigures | None = None

    @classmethod
    def of(cls, level: Level) -> LevelEnd:
        seen, numbers = level.seen, level.numbers
        told = (seen.client, seen.repeated, seen.salted, seen.generated, seen.server)
        return cls(level.shape.to_json(), (numbers.start, numbers.stop), *told)

    @classmethod
    def from_json(cls, line: bytes) -> LevelEnd:
        """Return what a line of `to_json` tells. Raises RecordError, KeyError or ValueError."""
        end = decode(line, cls, what="the end of a level")
        shape_of(end.load)
        return end

    def to_json(self) -> dict[str, Any]:
        server = self.server.to_json() if self.server else None
        return asdict(self) | {"numbers": [*self.numbers], "server": server}

    def level(self, records: Sequence[RequestRecord], load: Load, conditions: Conditions) -> Level:
        """Return the level whose requests these are."""
        seen = Circumstances(
            self.client,
            repeated=self.repeated,
            salted=self.salted,
            prefix_expected=conditions.prefix_expected,
            generated=self.generated,
            server=self.server,
        )
        steady = [record for record in records if record.intended >= load.ramp]
        level = judged(shape_of(self.load), steady, seen, conditions.goodput)
        return replace(level, numbers=range(*self.numbers))


def run_of(load: Load, digest: str, conditions: Conditions) -> dict[str, Any]:
    """Return what makes two runs the same."""
    return {
        "load": load.to_json(),
        "shapes": [shape.to_json() for shape in load.shapes],
        "dataset": digest,
        "find_max": [limit.text for limit in conditions.find_max],
    }


def begin(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Note in the folder what the run is to be."""
    (folder / RUN).write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def note(folder: Path, level: Level) -> None:
    """Note that a level is over."""
    with (folder / ENDS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(LevelEnd.of(level).to_json()) + "\n")


def restore(
    folder: Path, wanted: Mapping[str, Any], load: Load, conditions: Conditions
) -> tuple[Level, ...]:
    """Return the levels that are over; what was kept of the one that was not goes to a file apart.

    Raises UsageError when the folder holds no run, or another than the wanted one.
    """
    check_same(folder, wanted)
    over = ends(folder)
    _cut(folder, len(over))
    levels = list(read_levels(folder)) if over else []
    if len(levels) != len(over):
        what = f"{len(over)} levels are finished, and there are requests of {len(levels)}"
        raise UsageError(what, where=str(folder), hint=_HINT)
    both = zip(over, levels, strict=True)
    return tuple(end.level(records, load, conditions) for end, records in both)


def _cut(folder: Path, levels: int) -> None:
    """Leave in requests.jsonl the records of so many levels."""
    path = folder / REQUESTS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    try:
        keep = [line for line in whole if level_of(json.loads(line)) < levels]
    except UNREAD as error:
        raise UsageError("not a record", where=str(path), hint=_HINT) from error
    if len(keep) == len(lines):
        return
    with (folder / CUT).open("ab") as file:
        file.writelines(lines[len(keep) :])
    draft = folder / f"{REQUESTS}.part"
    draft.write_bytes(b"".join(keep))
    draft.replace(path)


def check_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raise UsageError when the folder holds no run, or another than the wanted one."""
    where = str(folder)
    try:
        content = (folder / RUN).read_bytes()
        found = decode(content, dict[str, Any], what=RUN, most=16 * MOST)
    except (OSError, RecordError) as error:
        raise UsageError("no run to resume", where=where, hint=_HINT) from error
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    if differ:
        raise UsageError(f"a different run: {', '.join(differ)} differ", where=where, hint=_HINT)


def ends(folder: Path) -> list[LevelEnd]:
    """Return the ends of the levels that are over; a last line that was cut short is none."""
    path = folder / ENDS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [LevelEnd.from_json(line) for line in lines]
    except (RecordError, ValueError, KeyError) as error:
        raise UsageError("not a finished level", where=str(path), hint=_HINT) from error
