"""Runs in the environment of a node of Ray: what an engine will find there, as one JSON object.

    python -c PROGRAM < ORDER

ORDER is JSON: `env`, the environment of the replicas. The object comes after MARK, on the last line
of the output. Parts that fail stand in its `failed`, by name, and hide no other. What uses torch
runs in a child, which a fault in native code or a GPU that hangs may take with it.
The standard library, and torch and vLLM where they are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "raycluster probe: "
SCHEMA = 1
LIMITS = {"torch": 60.0, "vllm": 30.0}
"""Seconds for a part in the child; a part without its own has KERNEL_S."""
KERNEL_S = 20.0
ALL_S = 120.0
SMI_S = 5.0
LONGEST = 1500  # characters of an error
MOST = 64  # GPUs, and programs that hold their memory
PLACES = ("/usr/lib/wsl/lib", "/usr/local/nvidia/bin", "/run/current-system/sw/bin")
"""Of nvidia-smi, beside PATH."""
MAIN = ("_C_stable_libtorch", "_C")  # of vLLM from 0.29 on, and before
MORE = ("_moe_C_stable_libtorch", "_moe_C")

Said = dict[str, Any]


def main() -> None:
    """Print what is there."""
    order = json.loads(sys.stdin.read() or "{}")
    os.environ.update(order.get("env", {}))
    found: Said = {"schema": SCHEMA, "failed": {}}
    for name, part in PARTS.items():
        try:
            found[name] = part()
        except Exception as error:  # whatever it is, the other parts are told
            found["failed"][name] = words(error)
    try:
        watch(found)
    except Exception as error:
        found["failed"]["torch"] = words(error)
    sys.stdout.write("\n" + MARK + json.dumps(found) + "\n")


def words(error: BaseException) -> str:
    """Return `Type: message`, short."""
    return f"{type(error).__name__}: {error}"[:LONGEST]


def compiler() -> str:
    """Return the C compiler that Triton takes, or ""."""
    own = os.environ.get("CC", "").split()
    return next(filter(None, map(shutil.which, own[:1] or ("gcc", "clang"))), "")


def headers() -> bool:
    """Tell whether Python's headers are there."""
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


def nvcc() -> str:
    """Return CUDA's compiler as FlashInfer finds it, or ""."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = None if home else shutil.which("nvcc")
    return found or shutil.which(f"{home or '/usr/local/cuda'}/bin/nvcc") or ""


def flashinfer() -> str:
    """Return "ready" with compiled kernels, "compiles" without, "" where it is not installed."""
    if importlib.util.find_spec("flashinfer") is None:
        return ""
    return "ready" if importlib.util.find_spec("flashinfer_cubin") else "compiles"


def libcuda() -> str:
    """Return "", or why the driver's library does not load."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return str(error)[:LONGEST]
    return ""


def shm() -> Said:
    """Return the size of shared memory, in bytes."""
    there = os.statvfs("/dev/shm")  # noqa: S108  # no temporary file
    return {
        "size": there.f_blocks * there.f_frsize,
        "free": there.f_bavail * there.f_frsize,
    }


def memlock() -> int:
    """Return how many bytes a process may lock in memory; -1 for all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return -1 if soft == resource.RLIM_INFINITY else soft


def infiniband() -> bool:
    """Tell whether RDMA devices can be used here."""
    folder = Path("/dev/infiniband")
    return folder.is_dir() and any(folder.glob("uverbs*"))


def holders() -> list[Said]:
    """Return which programs hold memory of GPUs, as far as nvidia-smi tells it here."""
    program = shutil.which("nvidia-smi", path=":".join([os.environ.get("PATH", ""), *PLACES]))
    if program is None:
        return []
    done = subprocess.run(
        [
            program,
            "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
            "--format=csv,noheader,nounits",
        ],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SMI_S,
        check=True,
    )
    lines = done.stdout[:65536].decode("utf-8", "replace").splitlines()
    return [row for line in lines[:MOST] if (row := holder(line))]


def holder(line: str) -> Said | None:
    """Return one line of nvidia-smi; a name may hold commas."""
    each = [word.strip() for word in line.split(",")]
    if len(each) < 4 or not each[1].isdecimal() or not each[0].startswith(("GPU-", "MIG-")):
        return None
    used = int(each[-1]) << 20 if each[-1].isdecimal() and len(each[-1]) < 10 else None
    name = ",".join(each[2:-1])[-200:]
    return {"gpu": each[0], "pid": int(each[1][:9]), "name": name, "used": used}


PARTS: dict[str, Callable[[], Any]] = {
    "compiler": compiler,
    "headers": headers,
    "nvcc": nvcc,
    "ninja": lambda: shutil.which("ninja") or "",
    "flashinfer": flashinfer,
    "libcuda": libcuda,
    "shm": shm,
    "memlock": memlock,
    "infiniband": infiniband,
    "holders": holders,
}


def watch(found: Said) -> None:
    """Let a child look at torch, vLLM's kernels and the GPUs, and end it where it hangs."""
    found["gpus"] = []
    ours, its = os.pipe()
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.close(ours)
            look(its, said.fileno())
        os.close(its)
        with os.fdopen(ours, "rb", buffering=0) as pipe:
            at, late = listen(pipe, found)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if late:  # what hangs in a driver cannot even be killed: nobody waits for it
            found["failed"][at] = f"did not finish within {late:.0f} s"
        elif at:
            status = os.waitpid(child, 0)[1]
            found["failed"][at] = ending(status, said)


def ending(status: int, said: Any) -> str:  # noqa: ANN401  # a binary file
    """Return how a child ended that did not come to its end."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
    last = (said.read().decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    how = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "exited"
    return f"{how}: {last}"[:LONGEST]


def listen(pipe: Any, found: Said) -> tuple[str, float]:  # noqa: ANN401  # an unbuffered file
    """Take what the child tells; return the part that it did not end, and the limit it missed."""
    at, limit, end, rest = "torch", LIMITS["torch"], time.monotonic() + ALL_S, b""
    until = time.monotonic() + limit
    while True:
        left = min(until, end) - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return at, limit if until <= end else ALL_S
        piece = pipe.read(65536)
        if not piece:
            return at, 0.0
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            told = json.loads(line)
            at = told.pop("at", at)
            limit = LIMITS.get(at, KERNEL_S)
            until = time.monotonic() + limit
            found["failed"].update(told.pop("failed", {}))
            found["gpus"] += told.pop("gpus", [])
            found.update(told)
        if not at:
            return "", 0.0


def look(pipe: int, said: int) -> None:
    """Be the child: tell each part as it begins and ends; what libraries print goes to `said`."""
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nowhere), (1, said), (2, said)):
            os.dup2(source, target)
        for line in lines():
            os.write(pipe, json.dumps(line).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def lines() -> Iterator[Said]:
    """Yield what the parts find that need torch."""
    yield {"at": "torch"}
    try:
        if os.environ.get("VLLM_ENABLE_CUDA_COMPATIBILITY"):
            importlib.import_module("vllm")  # it brings another driver's library before torch comes
        torch = importlib.import_module("torch")
    except Exception as error:  # it may be anything that is wrong with an installation
        yield {"at": "", "failed": {"torch": words(error)}}
        return
    yield {"torch": about(torch)}
    yield {"at": "vllm"}
    kernels: Said = {"found": False, "error": "", "more": ""}
    try:
        kernels = load()
    except Exception as error:
        kernels["error"] = words(error)
    yield {"vllm": kernels}
    yield {"at": "count"}
    count, error_ = counted(torch)
    yield {"count": count, "init": error_}
    for number in range(min(count, MOST)):
        yield {"at": f"gpu {number}"}
        yield {"gpus": [gpu(torch, number)]}
    yield {"at": ""}


def about(torch: Any) -> Said:  # noqa: ANN401  # a module
    """Return what torch was built for."""
    told: Said = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "hip": getattr(torch.version, "hip", None) or "",
        "archs": [],
        "nccl": "",
    }
    with contextlib.suppress(Exception):
        told["archs"] = list(torch.cuda.get_arch_list())
    with contextlib.suppress(Exception):
        told["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return told


def load() -> Said:
    """Load vLLM's kernels as its platform for CUDA does, without the rest of vLLM."""
    package = importlib.util.find_spec("vllm")
    places = (package and package.submodule_search_locations) or []
    files = {
        name: path
        for name in (*MAIN, *MORE)
        for place in places
        for suffix in importlib.machinery.EXTENSION_SUFFIXES
        if (path := Path(place) / f"{name}{suffix}").is_file()
    }
    told: Said = {"found": bool(package), "error": "", "more": ""}
    main = [name for name in MAIN if name in files]
    if package and not main:
        told["error"] = f"vLLM has no kernel library ({', '.join(MAIN)})"
    for name in main:
        told["error"] = told["error"] or loaded(name, files[name])
    for name in (name for name in MORE if name in files):
        told["more"] = told["more"] or loaded(name, files[name])
    return told


def loaded(name: str, path: Path) -> str:
    """Return "", or why an extension does not load."""
    spec = importlib.util.spec_from_file_location(f"vllm.{name}", path)
    try:
        assert spec is not None  # noqa: S101  # the file has an extension's suffix
        importlib.util.module_from_spec(spec)
    except (ImportError, OSError, RuntimeError) as error:
        return words(error)
    return ""


def counted(torch: Any) -> tuple[int, str]:  # noqa: ANN401  # a module
    """Return how many devices torch sees, and why CUDA does not start with them."""
    if not (torch.version.cuda or getattr(torch.version, "hip", None)):
        return 0, ""
    try:
        count = int(torch.cuda.device_count())
    except Exception as error:
        return 0, words(error)
    try:
        torch.cuda.init()
    except Exception as error:
        return count, words(error)
    return count, ""


def gpu(torch: Any, number: int) -> Said:  # noqa: ANN401  # a module
    """Return what torch says of a device, and whether kernels run on it."""
    told: Said = {"index": number, "error": "", "engine": ""}
    try:
        seen = torch.cuda.get_device_properties(number)
        told["name"] = str(seen.name)
        told["capability"] = f"{seen.major}.{seen.minor}"
        told["uuid"] = str(getattr(seen, "uuid", ""))
        told["shares"] = bool(getattr(seen, "is_integrated", False))
        one = torch.zeros(1, device=f"cuda:{number}") + 1
        if one.item() != 1:
            told["error"] = f"0 + 1 is {one.item()}"
        told["free"], told["total"] = map(int, torch.cuda.mem_get_info(number))
    except Exception as error:
        told["error"] = words(error)
        return told
    try:
        engine_kernel(torch, number)
    except Exception as error:
        told["engine"] = words(error)
    return told


def engine_kernel(torch: Any, number: int) -> None:  # noqa: ANN401  # a module
    """Run one of vLLM's own kernels, where its library is loaded and has it."""
    operation = getattr(torch.ops._C, "silu_and_mul", None)
    if operation is None:
        return
    with torch.cuda.device(number):
        given = torch.zeros((1, 256), dtype=torch.float16, device=f"cuda:{number}")
        operation(given[:, :128].contiguous(), given)
        torch.cuda.synchronize(number)


if __name__ == "__main__":
    main()
