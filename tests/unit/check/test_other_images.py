"""What `check` says of hosts that have different images under one name."""

from __future__ import annotations

import pytest

from raycluster.check.hosts import other_images
from raycluster.core.errors import HostError

OLD, NEW = ("sha256:" + digit * 64 for digit in "12")
NAME = "vllm/vllm-openai:v1"


@pytest.mark.parametrize(
    ("head", "second", "pull", "told"),
    [
        ((OLD, True), (NEW, True), None, ("second", f"vllm-openai@{OLD}")),
        ((OLD, True), (NEW, False), None, ("second", "`raycluster up` takes the latter")),
        ((OLD, False), (NEW, True), None, ("head", "`raycluster up` takes the latter")),
        ((OLD, False), (NEW, False), "never", ("second", f"vllm-openai@{OLD}")),
        ((OLD, True), (OLD, False), None, None),
    ],
)
def test_a_difference_is_told_and_fails_nothing(
    head: tuple[str, bool],
    second: tuple[str, bool],
    pull: str | None,
    told: tuple[str, str] | None,
) -> None:
    named = {"head": {NAME: head}, "second": {NAME: second}}
    found = list(other_images({**named, "away": HostError("away")}, {"head": pull, "second": pull}))
    assert [each.host for each in found] == ([told[0]] if told else [])
    assert all(each.passed and told is not None and told[1] in each.text for each in found)
