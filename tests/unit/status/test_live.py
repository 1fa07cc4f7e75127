"""`--watch`: what it says of its own age and failures."""

from __future__ import annotations

import _thread
import io
import threading

import pytest
from rich.console import Console

from raycluster.core.errors import HostError
from raycluster.status.ask import Standing
from raycluster.status.live import Ages, watch
from tests.terminal import FIRST_SCREEN, HIDE, SHOW
from tests.unit.status.standing import whole


def test_the_age_is_told_as_soon_as_a_look_is_late() -> None:
    ages = Ages(2.0)
    ages.begins(100.0)
    ages.seen()
    assert str(ages.line(101.0, looking=False)) == "every 2 s, Ctrl-C to stop"
    ages.begins(102.0)
    assert str(ages.line(103.0, looking=True)) == "every 2 s, Ctrl-C to stop"
    late = str(ages.line(107.0, looking=True))
    assert late == "as of 7 s ago; watching for 5 s; every 2 s, Ctrl-C to stop"


def test_a_failed_look_is_told_with_the_age_of_what_is_shown() -> None:
    ages = Ages(2.0)
    ages.begins(100.0)
    ages.seen()
    ages.begins(102.0)
    ages.failed("no head")
    line = ages.line(110.0, looking=False)
    assert str(line).startswith("the refresh failed: no head; as of 10 s ago; every")
    ages.begins(112.0)
    ages.seen()
    assert "failed" not in str(ages.line(112.5, looking=False))


def test_watch_goes_on_after_a_failed_look_until_ctrl_c() -> None:
    looks: list[int] = []
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=30)

    def look() -> Standing:
        looks.append(len(looks))
        if len(looks) == 2:
            raise HostError("the network is down", where="head")
        if len(looks) == 3:
            raise KeyError("nodes")
        if len(looks) == 5:
            interrupt.set()
        return whole()

    interrupt = threading.Event()

    def stop() -> None:
        assert interrupt.wait(200)
        _thread.interrupt_main()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        watch(look, console, 0.2)
    file = console.file
    assert isinstance(file, io.StringIO)
    said = file.getvalue()
    assert "the refresh failed: the network is down" in said
    assert "the refresh failed: KeyError: 'nodes'" in said
    assert said.index("healthy") < said.index("the refresh failed")
    assert said.index(FIRST_SCREEN) > said.index("the refresh failed")  # as it was before
    assert said.rindex(SHOW) > said.rindex(HIDE)
