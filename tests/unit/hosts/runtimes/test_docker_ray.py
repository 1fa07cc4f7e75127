"""What is refused before Ray is added, and what uv and an image say in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raycluster.core.errors import ImageError
from raycluster.core.interfaces import Process, Versions
from raycluster.hosts.runtimes.docker_image import ImageContents
from raycluster.hosts.runtimes.docker_options import with_added
from raycluster.hosts.runtimes.docker_ray import RAY, folder_name, target_of
from raycluster.hosts.runtimes.docker_wheels import (
    LONGEST,
    WheelTarget,
    cause,
    checked_pins,
    is_conflict,
)

GOOD = ImageContents(
    Versions("3.12.11", "", "0.32.0", "5.19.0"),
    interpreter="/usr/bin/python3",
    machine="x86_64",
    libc="2.35",
    have=("numpy==2.5.5", "torch==2.13.0+cu130"),
)


def test_an_official_image_is_a_target() -> None:
    target = target_of("vllm/vllm-openai:v0.32.0", GOOD, RAY, "gpu-1")
    assert (target.python, target.platform) == ("3.12", "x86_64-manylinux_2_35")
    assert target.have == ("numpy==2.5.5", "torch==2.13.0+cu130")
    assert folder_name(target) == folder_name(replace(target))
    assert folder_name(target) != folder_name(replace(target, have=("numpy==2.5.4",)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"versions": Versions("3.12.1")}, "has neither ray nor an engine"),
        ({"versions": Versions("3.9.2", vllm="0.9")}, "Python 3.9: only for 3.10 to 3.14"),
        ({"versions": Versions("3.15.0", vllm="1")}, "Python 3.15: only for 3.10 to 3.14"),
        ({"versions": Versions("", vllm="1")}, "Python : only for"),
        ({"machine": "ppc64le"}, "ppc64le: only for x86_64 and aarch64"),
        ({"libc": ""}, "without glibc, such as one based on Alpine"),
        ({"libc": "2.12"}, r"glibc 2\.12: they need 2\.17 or newer"),
        ({"libc": "two"}, "glibc two"),
        ({"have": ("numpy==1", "--index-url=http://x==1")}, "package list is not valid"),
        ({"have": (7,)}, "package list is not valid"),
    ],
)
def test_what_ray_cannot_be_added_to_is_refused(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ImageError, match=expected) as caught:
        target_of("acme/x:1", replace(GOOD, **change), RAY, "gpu-1")  # type: ignore[arg-type]
    assert (caught.value.where, bool(caught.value.hint)) == ("gpu-1", True)


@pytest.mark.parametrize(
    ("glibc", "platform"),
    [
        (17, "manylinux_2_17"),
        (27, "manylinux_2_17"),
        (30, "manylinux_2_28"),
        (99, "manylinux_2_40"),
    ],
)
def test_the_platform_is_one_that_uv_knows(glibc: int, platform: str) -> None:
    assert WheelTarget("3.12", "aarch64", glibc, (), (), b"").platform == f"aarch64-{platform}"


@pytest.mark.parametrize(
    "pin", ["a", "a==", "a==1 --hash=x", "a==1\nb", "A==1", "-r==1", "a @ file:///x==1", "a==1;x"]
)
def test_what_is_no_pin_never_reaches_uv(pin: str) -> None:
    with pytest.raises(ImageError):
        checked_pins([pin], "gpu-1")


CONFLICT = """\
error: No solution found when resolving dependencies
  cause: Because ray[serve]==2.60.0 depends on shared>=2 and you require shared==1.0, we can
         conclude that your requirements are unsatisfiable.
hint: something
"""
OLDER = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because ray[serve]==2.60.0 depends on shared>=2 and you require
      shared==1.0, we can conclude that your requirements are unsatisfiable.
"""
OFFLINE = """\
error: Request failed after 1 retry in 1.3s
  cause: Failed to fetch: `file:///x/simple/ray/`
  cause: failed to lookup address information: Temporary failure in name resolution
"""
ABSENT = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of ray==2.60.0 and you require ray==2.60.0, it cannot be.
"""


@pytest.mark.parametrize(
    ("said", "conflict", "expected"),
    [
        (CONFLICT, True, "Because ray[serve]==2.60.0 depends on shared>=2 and you require sha"),
        (OLDER, True, "Because ray[serve]==2.60.0 depends on shared>=2 and you require shared==1"),
        (OFFLINE, False, "failed to lookup address information"),
        (ABSENT, False, "Because there is no version of ray==2.60.0"),
        ("ModuleNotFoundError: No module named 'pip'", False, "ModuleNotFoundError"),
        ("", False, "no reason given"),
        ("\x1b[2Jerror: \x07bad" + "d" * 900, False, "[2Jerror: baddd"),
    ],
)
def test_why_it_failed_is_told_on_one_line(said: str, conflict: bool, expected: str) -> None:
    assert cause(said).startswith(expected)
    assert "\n" not in cause(said)
    assert len(cause(said)) <= LONGEST
    assert is_conflict(said, ["numpy==2.5.5", "shared==1.0"]) is conflict


@pytest.mark.parametrize(
    ("env", "of_image", "path", "modules"),
    [
        ({}, {}, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ""),
        ({"PYTHONPATH": "{root}/code"}, {"PATH": "/opt/bin"}, "/opt/bin", "/raycluster/code:"),
        ({"PATH": "/own"}, {"PATH": "/opt", "PYTHONPATH": "/i"}, "/own", "/i:"),
    ],
)
def test_what_is_added_comes_last(
    env: dict[str, str], of_image: dict[str, str], path: str, modules: str
) -> None:
    made = with_added(Process("head", ("ray",), env=env), of_image, "ray-1")
    assert made == {
        "PATH": f"{path}:/raycluster/ray-1/bin",
        "PYTHONPATH": f"{modules}/raycluster/ray-1",
    }
