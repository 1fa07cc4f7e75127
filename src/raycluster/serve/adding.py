"""Adds packages to an image's Python: `python3 -c SOURCE ORDER`, in a container of that image.

ORDER is JSON: `folder` where they go, `requirements`, `have` (what the image holds, as pins),
`proof` (modules that must import in the end), and `here`, which says that the packages lie there
already, under `.part`. Otherwise the locks lie under `.locks`: versions with hashes, which are
taken as far as they fit what the image holds. Nothing of the image is replaced: what it holds is
not installed again.

Every line of the output is JSON: `bytes` so far, in the end `added` packages, or `error` with its
`kind`. It needs a Python 3.8 and its standard library.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMPLETE = ".complete"
RAY_LOCK, UV_LOCK = "ray.txt", "uv.txt"
COMPILED = ("--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url")
HASHED = ("--only-binary", ":all:", "--require-hashes", "-r")
EVERY_S = 2.0
PROOF_S = 300


class FailedError(Exception):
    """Why it cannot be added; `kind` is "tool", "resolve", "install" or "proof"."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


def main() -> None:
    """Do what the order says."""
    order = json.loads(sys.argv[1])
    os.umask(0o022)
    folder = Path(order["folder"])
    try:
        if not (folder / COMPLETE).exists():
            add(folder, order)
        say(added=json.loads((folder / COMPLETE).read_text()))
    except FailedError as error:
        clear(folder)
        say(error=str(error), kind=error.kind)
    except OSError as error:
        clear(folder)
        say(error=f"{error.strerror or error}: {error.filename or folder}", kind="install")
    finally:
        shutil.rmtree(str(locks_of(folder)), ignore_errors=True)


def add(folder: Path, order: dict[str, Any]) -> None:
    """Make the folder whole under another name, and give it its own in the end."""
    part = folder.with_name(f"{folder.name}.part")
    work = part.with_name(f"{part.name}.work")
    if not order["here"]:
        clear(folder)
        work.mkdir(parents=True)
        install(part, work, order)
        shutil.rmtree(work)
    own_scripts(part)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j0", str(part)],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    prove(part, order["proof"])
    added = sorted(each.name[: -len(".dist-info")] for each in part.glob("*.dist-info"))
    (part / COMPLETE).write_text(json.dumps(added))
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


def clear(folder: Path) -> None:
    """Remove what is half made."""
    for old in folder.parent.glob(f"{folder.name}.part*"):
        shutil.rmtree(old, ignore_errors=True)


def locks_of(folder: Path) -> Path:
    """Return the folder of the locks."""
    return folder.with_name(f"{folder.name}.locks")


def install(part: Path, work: Path, order: dict[str, Any]) -> None:
    """Resolve and fetch with uv. Raises FailedError."""
    locks = locks_of(Path(order["folder"]))
    uv = find_uv(work, locks)
    have, wanted, pins = (work / name for name in ("have.txt", "wanted.txt", "pins.txt"))
    have.write_text("\n".join(order["have"]))
    wanted.write_text("\n".join(order["requirements"]))
    common = ["--quiet", "--no-cache", "--only-binary", ":all:", "--python", sys.executable]
    shutil.copy(str(locks / RAY_LOCK), str(pins))
    run([*uv, "pip", "compile", *common, *COMPILED, *resolved(have, wanted, pins)], "resolve", work)
    pins.write_text(lacking(pins.read_text(), order["have"]))
    into = ["--target", str(part), "--link-mode", "copy", *HASHED, str(pins)]
    run([*uv, "pip", "install", *common, "--no-deps", *into], "install", work, [part, work])


def resolved(have: Path, wanted: Path, pins: Path) -> list[str]:
    """Return what uv is told; what `pins` holds before is kept, with its hashes, where it fits."""
    return ["-c", str(have), "-o", str(pins), str(wanted)]


def lacking(pins: str, have: Sequence[str]) -> str:
    """Return the packages of a file, each with its hashes, that are not there."""
    there = {pin.partition("==")[0] for pin in have}
    packages = re.split(r"\n(?=\S)", pins)
    return "\n".join(each for each in packages if each.partition("==")[0] not in there)


def find_uv(work: Path, locks: Path) -> list[str]:
    """Return how uv is called: the image's, or one that its pip installs beside."""
    found = shutil.which("uv")
    if found:
        return [found]
    if runs([sys.executable, "-m", "uv", "--version"]):
        return [sys.executable, "-m", "uv"]
    place, python = work / "uv", sys.executable
    if not runs([python, "-m", "pip", "--version"]):
        own = work / "pip"
        if not runs([python, "-m", "venv", str(own)]):
            raise FailedError("tool", "there is neither uv nor pip")
        python = str(own / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--retries", "1"]
    lock = [*HASHED, str(locks / UV_LOCK)]
    run([*pip, "--timeout", "10", "--target", str(place), *lock], "tool", work)
    return [str(place / "bin" / "uv")]


def runs(argv: list[str]) -> bool:
    """Return whether a command ends well, whatever it says."""
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def run(argv: list[str], kind: str, work: Path, grow: Sequence[Path] = ()) -> None:
    """Run a command and tell how folders grow meanwhile. Raises FailedError."""
    log = work / "log"
    env = dict(os.environ, TMPDIR=str(work))
    with (
        log.open("wb") as out,
        subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=str(work)
        ) as child,
    ):
        while child.poll() is None:
            say(bytes=sum(map(size_of, grow)))
            try:
                child.wait(EVERY_S)
            except subprocess.TimeoutExpired:
                continue
    if child.returncode:
        raise FailedError(kind, log.read_text(errors="replace")[-4000:])


def size_of(folder: Path) -> int:
    """Return the bytes of a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(str(folder)):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 # many files
            except OSError:
                continue
    return total


def own_scripts(part: Path) -> None:
    """Let the added programs run by this very interpreter, whatever installed them."""
    for script in (part / "bin").glob("*"):
        content = script.read_bytes()
        first, _, rest = content.partition(b"\n")
        if rest.startswith(b"'''exec'"):  # what installers write where the path is long
            first, rest = b"#!python", rest.partition(b"' '''\n")[2]
        if first.startswith(b"#!") and b"python" in first.lower():
            script.write_bytes(b"#!" + sys.executable.encode() + b"\n" + rest)
            script.chmod(0o755)


def prove(part: Path, modules: list[str]) -> None:
    """Import what was added, as a node will. Raises FailedError."""
    path = ":".join(each for each in (os.environ.get("PYTHONPATH"), str(part)) if each)
    program = "".join(f"import {module}\n" for module in modules)
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=dict(os.environ, PYTHONPATH=path),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROOF_S,
        )
    except subprocess.TimeoutExpired:
        took = time.monotonic() - began
        raise FailedError("proof", f"its import did not finish within {took:.0f} s") from None
    if done.returncode:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise FailedError(
            "proof", lines[-1] if lines else f"its import exited with status {done.returncode}"
        )


def say(**line: Any) -> None:  # noqa: ANN401  # JSON
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
