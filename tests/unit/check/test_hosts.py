"""What `check` tells of where images come from, and what it does not wait for twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from raycluster.check import hosts as checked
from raycluster.check.hosts import Finding, _archives, _images, check_plan
from raycluster.core.errors import HostError, ImageError, RayclusterError
from raycluster.hosts.fleet import Fleet
from raycluster.observe.image_registry import ImageAnswer
from raycluster.spec import ClusterSpec
from raycluster.spec.secret_values import Secrets
from tests.unit.docker_double import Docker, fleet_of

IMAGE = "acme/serving:1"
NO_TAG = ImageError("cannot get image: no such tag", where="there", hint="correct the image name")
NO_ROUTE = ImageAnswer(None, "no route")
Answer = bool | RayclusterError | None


def told(
    monkeypatch: pytest.MonkeyPatch,
    hosts: Mapping[str, Docker],
    *,
    images: str = "registry",
    image: str = IMAGE,
    here: ImageAnswer = NO_ROUTE,
) -> dict[str, tuple[bool, str]]:
    monkeypatch.setattr(checked, "ask_for", lambda *_: here)
    head, *workers = hosts
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"image": image},
            "distribution": {"images": images},
            "head": {"host": head},
            "workers": [{"host": name, "name": name} for name in workers],
        }
    )
    names = dict(zip((h.name for h in spec.hosts), hosts, strict=True))
    connected = {
        host.name: SimpleNamespace(host=host, runtime=hosts[names[host.name]])
        for host in spec.hosts
    }

    found = _images(spec, fleet_of(connected), dict.fromkeys(connected, "10.0.0.1"), None)
    return {names[f.host]: (f.passed, f.text) for f in found}


def test_one_host_that_can_pull_is_enough_where_hosts_hand_images_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = {"a": Docker(IMAGE, answer=True), "b": Docker(IMAGE, answer=NO_TAG)}
    alone = told(monkeypatch, hosts)
    assert {name: passed for name, (passed, _) in alone.items()} == {"a": True, "b": False}
    peers = told(monkeypatch, hosts, images="peer")
    assert all(passed for passed, _ in peers.values())


def test_a_host_that_has_it_is_enough_too_and_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        told(
            monkeypatch,
            {"a": Docker(IMAGE, answer=None), "b": Docker(IMAGE, answer=NO_TAG)},
            images="peer",
        )
        == {}
    )
    [(passed, _)] = told(
        monkeypatch, {"a": Docker(IMAGE, answer=None), "b": Docker(IMAGE, answer=NO_TAG)}
    ).values()
    assert not passed


def test_what_each_host_pulls_by_itself_is_no_matter_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stale = {
        "a": Docker(IMAGE, answer=True),
        "b": Docker(IMAGE, answer=NO_TAG, stale=True),
    }  # pull = "always"
    assert not told(monkeypatch, stale, images="peer")["b"][0]


@pytest.mark.parametrize(
    ("answer", "here", "expected"),
    [
        (NO_TAG, ImageAnswer(False, nearest=("2",)), (False, f"{NO_TAG.what}; it has 2")),
        (NO_TAG, ImageAnswer(True), (False, NO_TAG.what)),
        (False, ImageAnswer(True), (True, f"{IMAGE} exists in its registry, as seen from here")),
        (
            False,
            ImageAnswer(False, nearest=("2",)),
            (False, f"the registry has no {IMAGE}; it has 2"),
        ),
        (False, ImageAnswer(None, "no route"), (True, f"{IMAGE} was not looked up: no route")),
        (HostError("gone"), ImageAnswer(None, "no"), (True, f"{IMAGE} was not looked up: no")),
    ],
)
def test_a_hosts_own_answer_counts_and_else_that_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    here: ImageAnswer,
    expected: tuple[bool, str],
) -> None:
    assert told(monkeypatch, {"a": Docker(IMAGE, answer=answer)}, here=here) == {"a": expected}


@pytest.mark.parametrize(
    ("found", "planned"),
    [
        (Finding("head", "GPUs", False, "nvidia-smi did not respond within 10 s"), False),
        (Finding("head", "GPUs", False, "has 1 GPU, but gpus = 2"), True),
        (Finding("head", "connection", False, "no route"), False),
    ],
)
def test_what_hangs_is_not_waited_for_once_more(
    monkeypatch: pytest.MonkeyPatch, found: Finding, *, planned: bool
) -> None:
    asked: list[object] = []

    def preview(*given: object) -> object:
        asked.append(given)
        raise HostError("gone", where="head")

    monkeypatch.setattr(checked, "preview", preview)
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}})
    assert check_plan(spec, cast(Fleet, None), Secrets(), [found]) == ()
    assert bool(asked) == planned


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"no tar", "is not an archive")]
)
def test_an_archive_that_up_cannot_use_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, said: str
) -> None:
    archive = tmp_path / "image.tar"
    if content is not None:
        archive.write_bytes(content)
    spec = ClusterSpec.model_validate(
        {
            "cluster": {"name": "q"},
            "runtime": {"image": IMAGE, "archive": str(archive)},
            "head": {"host": "a"},
            "workers": [{"host": "b", "name": "b"}, {"host": "c", "name": "c"}],
        }
    )
    monkeypatch.setattr(checked, "_running", lambda c: {"worker"} if c.host.name == "c" else set())

    by_name = {host.name: SimpleNamespace(host=host) for host in spec.hosts}
    found = _archives(spec, fleet_of(by_name), dict.fromkeys(("head", "b", "c"), "10.0.0.1"))
    assert [(f.host, f.subject, f.passed) for f in found] == [
        ("head", "image", False),
        ("b", "image", False),
    ]
    assert all(f.text.startswith(f"{archive}: {said}") for f in found)
