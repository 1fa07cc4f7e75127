from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from raycluster.core.errors import RuntimeUnavailableError
from raycluster.core.interfaces import Process, Versions
from raycluster.core.tested_versions import UV as UV_VERSION
from raycluster.core.wait import wait_for
from raycluster.hosts.runtimes.native import NativeRuntime
from raycluster.hosts.runtimes.native_environment import PYTHON, NativeEnvironment, root_cause
from raycluster.hosts.transports.local import LocalTransport
from raycluster.requirements import RequirementsLock

RAY = Process("head", ("ray", "start"))

TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

needs_uv = pytest.mark.skipif(
    not shutil.which("uv", path=TOOLS) or not sys.version.startswith(PYTHON + "."),
    reason=f"needs uv and Python {PYTHON}",
)


@pytest.fixture(autouse=True)
def _with_the_tools_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", TOOLS)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Return a folder with a wheel that calls itself ray."""
    info = "ray-2.60.0.dist-info"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/ray-2.60.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ray.py", "x = 1\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ray\nVersion: 2.60.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return tmp_path / "wheels"


def _runtime(
    root: Path, wheels: Path, *requirements: str, lock: RequirementsLock | None = None
) -> NativeRuntime:
    return NativeRuntime(
        "box",
        "demo",
        LocalTransport("box"),
        requirements=requirements,
        uv_args=("--no-index", "--find-links", str(wheels)),
        lock=lock,
        root=str(root),
    )


@needs_uv
def test_an_environment_is_made_once_and_made_again_when_it_is_not_whole(
    tmp_path: Path, wheels: Path
) -> None:
    runtime, told = _runtime(tmp_path / "root", wheels, "ray==2.60.0"), list[str]()
    expected = Versions(python=".".join(map(str, sys.version_info[:3])), ray="2.60.0")
    assert runtime.known_versions(RAY) == (Versions(PYTHON, "2.60.0"), False)
    assert not (tmp_path / "root").exists()
    found = runtime.prepare(RAY, told.append)
    assert runtime.known_versions(RAY) == (found, True)
    assert found.ray == expected.ray
    assert found.python.startswith(PYTHON)
    assert told[0] == "creating the environment ray==2.60.0"
    (env,) = (tmp_path / "root").glob("env-*")
    assert list(env.glob("lib/*/site-packages/__pycache__/ray*.pyc"))
    told.clear()
    assert runtime.prepare(RAY, told.append) == found
    assert told == []
    (env / ".complete").unlink()
    (env / "bin/python").unlink()
    assert runtime.prepare(RAY, told.append) == found
    runtime.remove()
    assert not (tmp_path / "root").exists()


@needs_uv
def test_a_version_that_does_not_exist(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        _runtime(tmp_path / "root", wheels, "ray==9").prepare(RAY, lambda _: None)
    assert caught.value.where == "box"
    assert "you require ray==9" in caught.value.what
    assert caught.value.hint == "correct the versions in the spec"


@needs_uv
def test_an_environment_without_ray_does_not_run_ray(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="has no ray"):
        _runtime(tmp_path / "root", wheels).prepare(RAY, lambda _: None)


FETCH_NOW = """\
error: Failed to fetch: http://127.0.0.1:9/simple/ray/
  cause: client error (Connect)
  cause: Connection refused (os error 111)
"""
UNSOLVED_NOW = """\
error: No solution found when resolving dependencies
  cause: Because ray was not found in the provided package locations and you require ray==9
"""


@needs_uv
def test_a_lock_takes_the_files_that_it_names_alone(tmp_path: Path, wheels: Path) -> None:
    [wheel] = wheels.iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    good, bad = (
        RequirementsLock(f"ray==2.60.0 --hash=sha256:{d}\n".encode(), download=1, stored=2)
        for d in (digest, "0" * 64)
    )
    root = tmp_path / "root"
    known = _runtime(root, wheels, "ray", lock=good).outlook(RAY, ())
    assert (known.there, known.download_bytes, known.stored_bytes) == (False, 1, 2)
    with pytest.raises(
        RuntimeUnavailableError, match=r"the environment cannot be created: .*[Hh]ash"
    ):
        _runtime(root, wheels, "ray", lock=bad).prepare(RAY, lambda _: None)
    assert _runtime(root, wheels, "ray", lock=good).prepare(RAY, lambda _: None).ray == "2.60.0"
    made = [path for path in root.glob("env-*") if (path / ".complete").exists()]
    assert [(path / "requirements.txt").read_bytes() for path in made] == [good.text]


@needs_uv
def test_what_has_no_hash_is_installed_beside_the_lock(tmp_path: Path, wheels: Path) -> None:
    lock = RequirementsLock(b"", download=1, stored=2, beside=("ray==2.60.0",))
    runtime = _runtime(tmp_path / "root", wheels, "ray", lock=lock)
    assert runtime.prepare(RAY, lambda _: None).ray == "2.60.0"


def test_uv_is_installed_as_it_is_locked(tmp_path: Path) -> None:
    environment = NativeEnvironment("box", LocalTransport("box"))
    uv = environment._install_uv(str(tmp_path), lambda _: None)
    done = subprocess.run((uv, "--version"), capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"uv {UV_VERSION}")


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo $$ >pid; echo begun; exec sleep 1000", "sh had no output for 2 s"),
        ("echo no way >&2; exit 3", "no way"),
    ],
)
def test_what_makes_an_environment_fails_or_says_nothing(
    tmp_path: Path, script: str, what: str
) -> None:
    environment = NativeEnvironment("box", LocalTransport("box"), quiet=2)
    with pytest.raises(RuntimeUnavailableError, match=f"cannot be created: {what}"):
        environment._run(("sh", "-c", f"cd {tmp_path}; {script}"), {}, lambda _: None)
    for file in tmp_path.glob("pid"):
        ended = functools.partial(_ended, file.read_text().strip())
        assert wait_for(ended, timeout=20), "it runs on"


def _ended(pid: str) -> bool | None:
    ps = ("ps", "-o", "stat=", "-p", pid)
    return (
        subprocess.run(ps, capture_output=True, check=False).stdout.strip()[:1] in (b"", b"Z")
        or None
    )


FETCH = """\
error: Request failed after 3 retries
  Caused by: Failed to fetch: `https://pypi.org/simple/ray/`
  Caused by: error sending request for url (https://pypi.org/simple/ray/)
  Caused by: client error (Connect)
  Caused by: dns error: failed to lookup address information: Name or service not known
"""
UNSOLVED = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because there is no version of ray==9 and you require ray==9, we can
      conclude that your requirements are unsatisfiable.
"""
PIP = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('...')': /uv/
ERROR: Could not find a version that satisfies the requirement uv (from versions: none)
ERROR: No matching distribution found for uv
"""
FULL = """\
Resolved 3 packages in 1ms
error: Failed to install: torch-2.13.0.whl
  Caused by: failed to copy file: No space left on device (os error 28)
"""


@pytest.mark.parametrize(
    ("output", "what", "hint"),
    [
        (
            FETCH,
            "Request failed after 3 retries: dns error: failed to lookup address information: "
            "Name or service not known",
            "package index",
        ),
        (
            UNSOLVED,
            "Because there is no version of ray==9 and you require ray==9, we can conclude that "
            "your requirements are unsatisfiable.",
            "correct the versions",
        ),
        (
            FETCH_NOW,
            "Failed to fetch: http://127.0.0.1:9/simple/ray/: Connection refused (os error 111)",
            "package index",
        ),
        (
            UNSOLVED_NOW,
            "Because ray was not found in the provided package locations and you require ray==9",
            "correct the versions",
        ),
        (PIP, "the package index cannot be reached", "give the host access"),
        (
            FULL,
            "Failed to install: torch-2.13.0.whl: failed to copy file: No space left on device "
            "(os error 28)",
            "free some space",
        ),
        ("The virtual environment was not created: ensurepip is not available", "no venv", "venv"),
        ("", "uv printed nothing", "check uv or pip on the host"),
    ],
)
def test_root_cause(output: str, what: str, hint: str) -> None:
    found = root_cause(output)
    assert found[0].endswith(what)
    assert hint in found[1]
