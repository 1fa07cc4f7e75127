"""scripts/prove-gpu pack | unpack | install | run | rehearse"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import contents
from .place import CALLS, Place

AT = Path("/tmp/prove-gpu")


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="prove-gpu", description="see docs/benchmarks/gpu.md")
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="make three pieces for a machine without network")
    pack.add_argument("folder", type=Path)
    have = "of that machine: the output of pip list --format=freeze"
    pack.add_argument("--have", type=Path, default=contents.MACHINE, help=have)
    more = "a package to carry though the machine has it"
    pack.add_argument("--carry", action="append", default=[], metavar="NAME", help=more)
    unpack = commands.add_parser("unpack", help="make the environments of the pieces in a folder")
    unpack.add_argument("pieces", type=Path)
    install = commands.add_parser("install", help="make them from a package index instead")
    run = commands.add_parser("run", help="prove")
    run.add_argument("call", choices=CALLS)
    run.add_argument("--pieces", type=Path, help="unpack these first")
    run.add_argument("--on-cpu", action="store_true", help="rehearse, with a tiny model")
    rehearse = commands.add_parser("rehearse", help="all of it on this machine, without a GPU")
    rehearse.add_argument("pieces", type=Path)
    base = "a version, or the path of an interpreter"
    rehearse.add_argument("--python", default=contents.PYTHON, help=base)
    for command in (unpack, install, run, rehearse):
        command.add_argument("--at", type=Path, default=AT, help=f"default: {AT}")
    options = parser.parse_args()
    at = options.at.absolute()
    match options.command:
        case "pack":
            from .pack import pack as work

            work(options.folder, options.have, options.carry)
        case "unpack":
            print("unpacked:", *Place(at).unpack(options.pieces) or ["nothing new"])
        case "install":
            from .install import install as work_install

            work_install(at)
        case "rehearse":
            from .rehearse import rehearse as work_rehearse

            return work_rehearse(options.pieces, at, options.python)
        case "run":
            return prove(options.call, Place(at), options.pieces, gpu=not options.on_cpu)
    return 0


def prove(call: str, place: Place, pieces: Path | None, *, gpu: bool) -> int:
    """Run the steps of a call, print its table and keep it."""
    from .steps import SECONDS, SLOWER, Proof, steps

    place.folder.mkdir(parents=True, exist_ok=True)
    if pieces:
        print("unpacked:", *place.unpack(pieces) or ["nothing new"], flush=True)
    proof = Proof(call, place, gpu=gpu)
    factor = 1 if gpu else SLOWER
    proof.table.go(steps(proof)[call], SECONDS[call], factor)
    return proof.table.end(proof.kept)


if __name__ == "__main__":
    sys.exit(main())
