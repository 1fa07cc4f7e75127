"""What keeps an engine from starting where a host's environment was looked at; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from raycluster.apply.engine_probe.told import ProbedGpu, ProbeResult, Torch
from raycluster.core.accelerators.values import Trouble
from raycluster.serve.failures import LOOK_AT_GPUS, cure, ended, known
from raycluster.serve.settings import GPU_MEMORY
from raycluster.spec import Model

GIB = 1 << 30
LEAST_SHM = GIB
LEAST_LOCKED = GIB
_LATE = "did not finish within"
_WITHOUT = "or set gpus = 0 to use this host without its GPUs"
_FIT = (
    "vLLM, torch and CUDA must match: use vLLM's own image unchanged, or omit runtime.python, so "
    "that `up` creates the environment"
)


@dataclass(frozen=True)
class ProbeRequest:
    """What the cluster will ask of a host: GPUs, and what its models need of them.

    `visible` is how many of the GPUs one process can see: of MIG slices that is one. `vllm` says
    whether a model must have it, may fall back from it, or does not try it. `share` is the least
    part of a GPU's memory that a replica takes, 0 where none says one. With `ours`, the cluster's
    own replicas may hold memory.
    """

    gpus: int
    visible: int
    vllm: Literal["must", "may", "no"] = "must"
    share: float = 0.0
    tensor: bool = False
    ours: bool = False


@dataclass(frozen=True)
class ProbeVerdict:
    """Why an engine cannot start, the first cause first, and what a person should know."""

    errors: tuple[Trouble, ...] = ()
    notes: tuple[Trouble, ...] = ()


def asked(models: Sequence[Model], gpus: int, *, slices: bool) -> ProbeRequest | None:
    """Return what models ask of a host of which the cluster uses so many GPUs; None for nothing."""
    on_gpus = [m for m in models if m.each_gpus]
    if not gpus or not on_gpus:
        return None
    engines = {m.engine_on(m.each_gpus) for m in on_gpus}
    return ProbeRequest(
        gpus=gpus,
        visible=min(gpus, 1) if slices else gpus,
        vllm="must" if "vllm" in engines else "may" if "auto" in engines else "no",
        share=min(map(_share, on_gpus)),
        tensor=any(m.tensor > 1 for m in on_gpus),
    )


def _share(model: Model) -> float:
    """Return the part of a GPU's memory that has to be free for a replica to start."""
    if model.engine == "transformers" or model.engine_args.get("kv_cache_memory_bytes"):
        return 0.0
    given = model.engine_args.get("gpu_memory_utilization")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    return GPU_MEMORY * min(model.each_gpus, 1)


def judge(seen: ProbeResult, asked: ProbeRequest) -> ProbeVerdict:
    """Return what is wrong for engines that will be asked for this."""
    lost = _torch(seen, asked)
    if lost:
        return ProbeVerdict(tuple(lost), tuple(_unseen(seen)))
    used = seen.gpus[: asked.gpus]
    errors = [*_devices(seen, asked), *_kernels(seen, used)]
    notes = [*_unseen(seen), *_compilers(seen), *_limits(seen, asked)]
    (errors if asked.vllm == "must" else notes).extend(_engine(seen, asked, used))
    if seen.more and not seen.kernels and asked.vllm != "no":
        what = "some of vLLM's kernels do not load: those of mixture-of-experts models"
        notes.append(_failure(seen.more, what, _FIT))
    held = [each for gpu in used if (each := _held(seen, gpu, asked))]
    (errors if used and len(held) == len(used) else notes).extend(held)
    return ProbeVerdict(tuple(errors), tuple(notes))


def summary(seen: ProbeResult) -> str:
    """Return one line on what is there."""
    names = [gpu.name for gpu in seen.gpus]
    counted = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    parts = [f"kernels run on {counted}" if counted else ""]
    if torch := seen.torch:
        toolkit = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}"
        parts.append(f"torch {torch.version}, {toolkit}")
        parts.append(f"NCCL {torch.nccl}" if torch.nccl else "")
    return "; ".join(filter(None, parts)) or "its environment was checked"


def _torch(seen: ProbeResult, asked: ProbeRequest) -> list[Trouble]:
    """Return why nothing can be said of GPUs: torch is not there, or is not for them."""
    why = seen.failed.get("torch", "")
    if "No module named 'torch'" in why:
        return [
            Trouble(
                "the environment has no torch, which every engine needs",
                "use an image with vLLM, or install it in the environment of runtime.python",
            )
        ]
    if why and _LATE not in why:
        return [_failure(why, "torch cannot be loaded", _FIT)]
    torch = seen.torch
    if torch and not torch.cuda and not torch.hip:
        return [
            Trouble(
                f"the environment has a CPU build of torch ({torch.version}), but the cluster uses "
                f"{asked.gpus} GPUs of this host",
                "use an image or a runtime.python with vLLM for GPUs; if `up` created the "
                "environment before the GPUs were available, run `raycluster down` to have it "
                f"created again; {_WITHOUT}",
            )
        ]
    return []


def _devices(seen: ProbeResult, asked: ProbeRequest) -> Iterator[Trouble]:
    if seen.init:
        yield _failure(seen.init, "CUDA fails to initialize in the environment", LOOK_AT_GPUS)
    elif seen.count is not None and seen.count < asked.visible:
        yield Trouble(
            f"torch sees {seen.count} of the {asked.gpus} GPUs that the cluster uses of this host",
            "correct `gpus`, and remove CUDA_VISIBLE_DEVICES and similar variables from "
            "runtime.env; "
            f"{LOOK_AT_GPUS}",
        )


def _kernels(seen: ProbeResult, used: Sequence[ProbedGpu]) -> Iterator[Trouble]:
    """Yield why torch does not work on GPUs."""
    for part, why in seen.failed.items():
        if part.startswith("gpu ") or part == "count":
            place = "GPUs" if part == "count" else f"GPU {part[4:]}"
            hint = "see `dmesg | grep -i -e xid -e nvrm` on the host, and reboot it"
            if _LATE in why:
                yield Trouble(
                    f"CUDA hangs on {place}: a program with a single addition {why}", hint
                )
            else:
                yield _failure(why, f"CUDA fails on {place}", hint)
    for gpu in used:
        if gpu.error and not _is_full(gpu):
            told = _lacks_code(seen.torch, gpu) if "no kernel image" in gpu.error else ""
            yield _failure(gpu.error, f"no kernel runs on {gpu.words}", LOOK_AT_GPUS, told)


def _lacks_code(torch: Torch | None, gpu: ProbedGpu) -> str:
    """Return in words that torch holds no code for a GPU, or "" where it does, or may."""
    if not torch or not torch.archs or not gpu.capability or holds(torch.archs, gpu.capability):
        return ""
    there = ".".join(map(str, gpu.capability))
    return (
        f"torch {torch.version} is built for {', '.join(torch.archs)}, but {gpu.words} has compute "
        f"capability {there}"
    )


def holds(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Tell whether there is code for a GPU among `sm_90`, `sm_90a`, `compute_80` and their like.

    Machine code runs on the same major and an equal or higher minor version; with `a` on that one
    alone. What is compiled at the start (`compute`) runs on all that came later.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_([0-9]{1,3})([0-9])([af]?)", arch)
        if not match:
            continue
        made = int(match[2]), int(match[3])
        if match[1] == "compute" and made <= capability:
            return True
        exact = match[4] == "a"
        if made[0] == capability[0] and (made == capability or (made < capability and not exact)):
            return True
    return False


def _engine(seen: ProbeResult, asked: ProbeRequest, used: Sequence[ProbedGpu]) -> Iterator[Trouble]:
    """Yield why vLLM cannot work, where torch can."""
    if asked.vllm == "no":
        return
    why = seen.failed.get("vllm", "")
    if seen.vllm is False:
        yield Trouble("the environment has no vLLM", "use an image or environment with vLLM")
    elif seen.kernels or (why and _LATE not in why):
        yield _failure(seen.kernels or why, "vLLM's kernel library does not load", _FIT)
    for gpu in used:
        if gpu.engine:
            yield _failure(gpu.engine, f"vLLM's kernels do not run on {gpu.words}", _FIT)


def _failure(why: str, what: str, hint: str, more: str = "") -> Trouble:
    """Return a failure in words where it is a known one, else with the program's own."""
    killed = re.match(r"killed by signal ([0-9]{1,3})\b", why)
    cause = known(why) or (ended(int(killed[1])) if killed else "")
    told = f"{what}: {cause or why}"
    return Trouble(f"{told}; {more}" if more else told, cure(cause) or hint)


def _is_full(gpu: ProbedGpu) -> bool:
    return "out of memory" in gpu.error


def _held(seen: ProbeResult, gpu: ProbedGpu, asked: ProbeRequest) -> Trouble | None:
    """Return that too little of a GPU's memory is free for a replica, and who has it."""
    free, total = gpu.free, gpu.total
    if asked.ours:
        return None
    if _is_full(gpu):
        told = f"there is no free memory on {gpu.words}"
    elif free is None or not total or gpu.shares or gpu.error or free >= asked.share * total:
        return None
    else:
        told = (
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free on {gpu.words}, but a replica "
            f"takes {asked.share:.0%}"
        )
    by = ", ".join(
        f"{holder.name or 'a program'} (pid {holder.pid}"
        + (f", {holder.used / GIB:.1f} GiB)" if holder.used else ")")
        for holder in seen.holders[:8]
        if holder.gpu == gpu.uuid or not gpu.uuid
    )
    hint = cure("other programs use the GPU's memory")
    return Trouble(f"the GPU's memory is used by {by or 'other programs'}: {told}", hint)


def _unseen(seen: ProbeResult) -> Iterator[Trouble]:
    """Yield what could not be looked at."""
    for part, why in seen.failed.items():
        if part in ("torch", "vllm") and _LATE not in why:
            continue
        if not part.startswith("gpu ") and part != "count":
            yield Trouble(f"{part} could not be checked: {why}")


def _compilers(seen: ProbeResult) -> Iterator[Trouble]:
    """Yield what kernels cannot be compiled without."""
    eager = "engine_args.enforce_eager"
    for there, cause in (
        (seen.compiler, "there is no C compiler, which is needed to compile kernels"),
        (seen.headers, "Python's headers are missing, which are needed to compile kernels"),
    ):
        if there is not None and not there:
            way = cure(cause)
            yield Trouble(cause, way if eager in way else f"{way}, or set {eager}")
    lacking = [name for name, path in (("nvcc", seen.nvcc), ("ninja", seen.ninja)) if path == ""]
    if lacking and seen.flashinfer == "compiles" and seen.torch and seen.torch.cuda:
        yield Trouble(
            f"there is no {' and no '.join(lacking)}, which FlashInfer needs to compile its "
            "kernels: vLLM uses others, which may be slower",
            "install the CUDA toolkit and ninja there, or the package flashinfer-cubin",
        )


def _limits(seen: ProbeResult, asked: ProbeRequest) -> Iterator[Trouble]:
    """Yield limits of the system that stand in the way."""
    if asked.tensor and seen.shm is not None and seen.shm < LEAST_SHM:
        yield Trouble(
            f"shared memory (/dev/shm) has {seen.shm / GIB:.2f} GiB, which the GPUs of a replica "
            "use to communicate",
            cure("shared memory is too small for NCCL"),
        )
    if seen.infiniband and seen.memlock is not None and 0 <= seen.memlock < LEAST_LOCKED:
        yield Trouble(
            f"a process may lock {seen.memlock / GIB:.2f} GiB of memory, which is low for RDMA",
            "raise `ulimit -l` for the user (in /etc/security/limits.conf), or Docker's "
            "default-ulimits memlock, to unlimited",
        )
    torch = seen.torch
    if seen.libcuda and torch and not torch.hip and not seen.init:
        yield Trouble(f"libcuda.so.1 does not load: {seen.libcuda}", LOOK_AT_GPUS)
