"""Makes the pieces from the wheels of a package index; needs uv, tar and xz."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from raycluster.core import tested_versions

from . import contents

CHECKOUT = Path(__file__).parents[2]
PROOF = ("scripts", "benchmarks", "examples")
"""What of the checkout the steps run, besides the program itself."""
PYTHON_MARK = b"#!@PYTHON@\n"
SERVING = (
    f"ray[serve]=={tested_versions.RAY}",
    f"torch=={contents.TORCH}",
    f"transformers=={contents.TRANSFORMERS}",
    str(CHECKOUT),
)
XZ = ("--x86", "--lzma2=preset=9e,dict=128MiB", "--threads=1")
"""Most of what is left to pack is code of the processor's and of the GPU's."""


def pack(folder: Path, have: Path, carry: Iterable[str]) -> None:
    """Write three pieces into the folder. Exits where one is larger than allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    found = resolved(have.read_text(), carry)
    (folder / "machines.txt").write_text(lines(found.machines))
    with TemporaryDirectory(dir=folder, prefix="making-") as made:
        serving, engine, kernels = (Path(made, str(number)) for number in (1, 2, 3))
        install(lines(found.serving), serving / "site")
        install(str(CHECKOUT), serving / "site")
        for name in PROOF:
            copy(CHECKOUT / name, serving / "proof" / name)
        install(lines(found.engine), engine / "site")
        whole = Path(made, "vllm")
        install(f"vllm=={contents.VLLM}", whole)
        for path in files(whole):
            place = kernels if contents.compiled(path) else engine
            moved = place / "site" / path
            moved.parent.mkdir(parents=True, exist_ok=True)
            (whole / path).rename(moved)
        pieces = [folder / f"piece-{number}.tar.xz" for number in (1, 2, 3)]
        with ThreadPoolExecutor() as threads:  # xz makes one thread of what is no larger
            sizes = list(threads.map(compressed, (serving, engine, kernels), pieces))
    for number, size in enumerate(sizes, 1):
        print(f"piece-{number}.tar.xz  {size / contents.MIB:.1f} MiB")
    if large := [number for number, size in enumerate(sizes, 1) if size > contents.LARGEST]:
        sys.exit(f"larger than {contents.LARGEST // contents.MIB} MiB: pieces {large}")


def resolved(have: str, carry: Iterable[str]) -> contents.Split:
    """Resolve what is needed, at the machine's versions where that goes, and share it out."""
    machine = contents.frozen(have)
    with TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")  # what stands there already is preferred
        pins.write_text(lines({name: number for name, number in machine.items() if number}))
        everything = compiled([*SERVING, f"vllm=={contents.VLLM}"], pins)
        pins.write_text(lines(everything))
        serving = compiled(SERVING, pins)
    return contents.split(everything, serving.keys(), machine.keys(), set(carry))


def compiled(requirements: Iterable[str], pins: Path) -> dict[str, str]:
    """Return what the requirements come to, this project left out; it replaces the pins."""
    command = [*uv("pip", "compile"), "--quiet", "--no-header", "--no-annotate", "-"]
    command += ["--python-version", contents.PYTHON, "--python-platform", contents.GLIBC]
    command += ["-o", str(pins)]
    asked = "".join(f"{line}\n" for line in requirements)
    subprocess.run(command, input=asked, text=True, check=True, stdout=subprocess.DEVNULL)
    found = contents.frozen(pins.read_text())
    return {name: number for name, number in found.items() if number}


def install(requirements: str, site: Path) -> None:
    """Install as on the machine, without what the requirements need, and tidy up."""
    command = [*uv("pip", "install"), "--quiet", "--no-deps", "--link-mode=copy"]
    command += ["--target", str(site), "--refresh-package=raycluster"]  # uv keeps what it built
    command += ["--python-version", contents.PYTHON, "--python-platform", contents.GLIBC]
    subprocess.run([*command, "-r", "-"], input=requirements, text=True, check=True)
    for path in files(site):
        if contents.left_out(path):
            (site / path).unlink()
    for program in (site / "bin").glob("*"):
        text = program.read_bytes()
        if text.startswith(b"#!") and b"python" in text.partition(b"\n")[0]:
            program.write_bytes(PYTHON_MARK + text.partition(b"\n")[2])


def files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, beginning there."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()]


def copy(source: Path, target: Path) -> None:
    """Copy programs, and nothing that they have made."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "results"))


def compressed(source: Path, target: Path) -> int:
    """Pack a folder; return how large it has become, in bytes."""
    tar = ["tar", "-C", str(source), "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-cf-"]
    with target.open("wb") as file:
        raw = subprocess.Popen([*tar, "."], stdout=subprocess.PIPE)
        subprocess.run(["nice", "xz", *XZ, "-c"], stdin=raw.stdout, stdout=file, check=True)
        if raw.wait():
            sys.exit("tar failed")
    return target.stat().st_size


def lines(packages: Mapping[str, str]) -> str:
    """Return packages as a file of requirements."""
    return "".join(f"{name}=={number}\n" for name, number in sorted(packages.items()))


def uv(*words: str) -> list[str]:
    """Return a command line of the uv that stands beside this Python."""
    return [str(Path(sys.executable).with_name("uv")), *words]
