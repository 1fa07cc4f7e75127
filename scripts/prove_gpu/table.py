"""The rows that a proof comes to, and steps with limits on their time."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NO_GPU = "not on a CPU"
BAD = ("MISSED", "FAILED", "left out")


class StepError(Exception):
    """A step has failed, for a reason in words; `tail` is the end of what was logged."""

    def __init__(self, reason: str, tail: str = "") -> None:
        super().__init__(reason)
        self.tail = tail


@dataclass(frozen=True)
class Step:
    """A part of a call. `seconds` is its time at most, `needs` the steps without which it is none.

    One that is to run `always` has its time even where the call has none left.
    """

    name: str
    seconds: float
    run: Callable[[], None]
    needs: Sequence[str] = ()
    always: bool = False


@dataclass
class Table:
    """Rows of one call; on a CPU the limits of GPUs and speed judge nothing."""

    call: str
    gpu: bool
    rows: list[dict[str, object]] = field(default_factory=list)
    ends: float = 0.0
    """When the step that runs now has to be over, by the monotonic clock."""

    def left(self) -> float:
        """Return the seconds that the step has left; at least one."""
        return max(1.0, self.ends - time.monotonic())

    def say(self, what: str, figure: object, limit: str = "", *, kept: bool = True) -> None:
        """Note a figure, and whether it kept its limit."""
        self._add(what, figure, limit, "ok" if kept else "MISSED")

    def on_gpu(self, what: str, figure: object, limit: str, *, kept: bool) -> None:
        """Note a figure whose limit is for a machine with a GPU."""
        self._add(what, figure, limit, ("ok" if kept else "MISSED") if self.gpu else NO_GPU)

    def aim(self, what: str, figure: object, limit: str, *, kept: bool) -> None:
        """Note a figure that nothing was promised of."""
        self._add(
            what, figure, limit, ("reached" if kept else "not reached") if self.gpu else NO_GPU
        )

    def _add(self, what: str, figure: object, limit: str, verdict: str) -> None:
        shown = f"{figure:.2f}" if isinstance(figure, float) else str(figure)
        row: dict[str, object] = {"what": what, "figure": shown, "limit": limit, "verdict": verdict}
        self.rows.append(row)
        print(f"   {what}: {shown} {f'({limit}) ' if limit else ''}{verdict}", flush=True)

    def go(self, steps: Sequence[Step], seconds: float, slower: float = 1) -> None:
        """Run the steps within the seconds, but for those that need one that has failed."""
        seconds *= slower
        over = time.monotonic() + seconds
        done: set[str] = set()
        for step in steps:
            began = time.monotonic()
            if lacking := [name for name in step.needs if name not in done]:
                self._add(step.name, "", f"needs {', '.join(lacking)}", "left out")
                continue
            ends = began + step.seconds * slower
            self.ends = ends if step.always else min(ends, over)
            if self.ends <= began:
                self._add(step.name, "", f"the call's {seconds:.0f} s are over", "left out")
                continue
            print(f"== {step.name}, at most {self.left():.0f} s", flush=True)
            try:
                step.run()
                done.add(step.name)
            except StepError as error:
                self._add(step.name, str(error), "", "FAILED")
                print(error.tail, flush=True)
            except Exception as error:
                self._add(step.name, f"{type(error).__name__}: {error}", "", "FAILED")
                traceback.print_exc()
            self._add(f"{step.name}: seconds", time.monotonic() - began, "", "")

    def end(self, folder: Path) -> int:
        """Print the table, keep it, and return the exit code."""
        wide = [max(len(str(row[key])) for row in self.rows) for key in ("what", "figure", "limit")]
        wide = [min(size, most) for size, most in zip(wide, (44, 48, 40), strict=True)]
        print(f"\n{self.call}")
        for row in self.rows:
            words = [
                f"{row[k]!s:<{w}.{w}}"
                for k, w in zip(("what", "figure", "limit"), wide, strict=True)
            ]
            print(" | ".join([*words, str(row["verdict"])]))
        bad = [row for row in self.rows if row["verdict"] in BAD]
        print(
            f"{self.call}: "
            + (f"{len(bad)} of {len(self.rows)} not as promised" if bad else "all as promised")
        )
        told = {"call": self.call, "gpu": self.gpu, "rows": self.rows}
        (folder / "table.json").write_text(json.dumps(told, indent=1) + "\n")
        return 1 if bad else 0
