"""When `up` asks a host for the password that its Grafana made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from raycluster.apply.converge import _grafana_password
from raycluster.core.errors import HostError
from raycluster.core.interfaces import Completed, Process, Secret
from raycluster.hosts.fleet import Fleet
from raycluster.plan.actions import Action, Remove, Start
from raycluster.services.grafana import GRAFANA, READ_PASSWORD

GRAFANA_STARTS = Start("head", Process(GRAFANA, ("sh",)), "not running")
STARTS_AGAIN = Start("head", Process(GRAFANA, ("sh",)), "the spec changed", replaces=True)
OTHER_STARTS = Start("head", Process("prometheus", ("sh",)), "not running")
REMOVED = Remove("head", GRAFANA, "not in the spec for this host")


@dataclass
class Box:
    """Stands for the fleet and all that it leads to, down to the shell inside of Grafana's box."""

    answer: Completed | HostError
    asked: list[tuple[str, Sequence[str]]] = field(default_factory=list)
    host: str = ""
    role: str = ""

    @property
    def runtime(self) -> Box:
        return self

    def __getitem__(self, host: str) -> Box:
        self.host = host
        return self

    def inside(self, role: str) -> Box:
        self.role = role
        return self

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        self.asked.append((f"{self.host}/{self.role}", argv))
        if isinstance(self.answer, HostError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("actions", "answer", "expected"),
    [
        ((OTHER_STARTS, GRAFANA_STARTS), Completed(0, b"sesame\n"), Secret("sesame")),
        ((GRAFANA_STARTS,), Completed(1, b"", b"no such file"), None),
        ((GRAFANA_STARTS,), Completed(0, b""), None),
        ((GRAFANA_STARTS,), HostError("is not running"), None),
    ],
)
def test_a_grafana_that_was_not_there_is_asked(
    actions: tuple[Action, ...], answer: Completed | HostError, expected: Secret | None
) -> None:
    box = Box(answer)
    assert _grafana_password(cast("Fleet", box), actions) == expected
    assert box.asked == [("head/grafana", READ_PASSWORD)]


@pytest.mark.parametrize("actions", [(), (OTHER_STARTS,), (STARTS_AGAIN,), (REMOVED,)])
def test_no_other_is_asked(actions: tuple[Action, ...]) -> None:
    box = Box(Completed(0, b"sesame"))
    assert _grafana_password(cast("Fleet", box), actions) is None
    assert box.asked == []
