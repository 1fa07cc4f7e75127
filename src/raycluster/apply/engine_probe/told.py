"""What the program in a node's environment printed, as plain values; pure.

A host's words are judged, never believed: only values of the asked form are taken, and all that is
not one object of the program's is one HostError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raycluster.core.accelerators.values import clean, whole
from raycluster.core.errors import AnswerError, HostError
from raycluster.core.untrusted import read_json

MARK = "raycluster probe: "
LONGEST = 256 * 1024
"""Bytes of output that are read: the rest of a host's words is not."""
_MOST = 64


@dataclass(frozen=True)
class ProbedGpu:
    """One device as torch sees it; None is what it does not tell.

    `error` is why torch's kernels do not run on it, `engine` why vLLM's do not. `shares` is True
    where it has the host's memory.
    """

    index: int
    name: str = ""
    capability: tuple[int, int] | None = None
    uuid: str = ""
    free: int | None = None
    total: int | None = None
    shares: bool = False
    error: str = ""
    engine: str = ""

    @property
    def words(self) -> str:
        """It, in a sentence."""
        return f"GPU {self.index} ({self.name})" if self.name else f"GPU {self.index}"


@dataclass(frozen=True)
class Holder:
    """A program that holds a GPU's memory."""

    gpu: str
    pid: int
    name: str
    used: int | None = None


@dataclass(frozen=True)
class Torch:
    """What torch was built for."""

    version: str
    cuda: str = ""
    hip: str = ""
    archs: tuple[str, ...] = ()
    nccl: str = ""


@dataclass(frozen=True)
class ProbeResult:
    """What an engine will find; None is what was not told.

    `failed` are the parts that could not be looked at, with the reason. `init` is why CUDA does not
    start, `kernels` why vLLM's main library does not load, and `more` another of its libraries.
    `flashinfer` is "ready", "compiles" or "". `memlock` is -1 where there is no limit.
    """

    torch: Torch | None = None
    vllm: bool | None = None
    kernels: str = ""
    more: str = ""
    count: int | None = None
    init: str = ""
    gpus: tuple[ProbedGpu, ...] = ()
    holders: tuple[Holder, ...] = ()
    compiler: str | None = None
    headers: bool | None = None
    nvcc: str | None = None
    ninja: str | None = None
    flashinfer: str = ""
    libcuda: str = ""
    shm: int | None = None
    memlock: int | None = None
    infiniband: bool = False
    failed: Mapping[str, str] = field(default_factory=dict)


def read(output: bytes, host: str) -> ProbeResult:
    """Return what the program on `host` found. Raises HostError."""
    told = _object(output, host)
    kernels = _table(told.get("vllm"))
    return ProbeResult(
        torch=_torch(told.get("torch")),
        vllm=_flag(kernels.get("found")),
        kernels=_text(kernels.get("error")),
        more=_text(kernels.get("more")),
        count=whole(told.get("count"), 4),
        init=_text(told.get("init")),
        gpus=tuple(_gpus(told.get("gpus"))),
        holders=tuple(_holders(told.get("holders"))),
        compiler=_some(told.get("compiler")),
        headers=_flag(told.get("headers")),
        nvcc=_some(told.get("nvcc")),
        ninja=_some(told.get("ninja")),
        flashinfer=_text(told.get("flashinfer")),
        libcuda=_text(told.get("libcuda")),
        shm=_size(_table(told.get("shm")).get("size")),
        memlock=-1 if told.get("memlock") == -1 else _size(told.get("memlock")),
        infiniband=told.get("infiniband") is True,
        failed={
            clean(part, 40): _text(why) or "no reason given"
            for part, why in list(_table(told.get("failed")).items())[:_MOST]
        },
    )


def _object(output: bytes, host: str) -> dict[str, Any]:
    hint = f"raycluster exec {host} -- python -c 'import torch; torch.cuda.init()' shows more"
    if len(output) > LONGEST:
        raise HostError("checking its environment printed too much output", where=host, hint=hint)
    text = output.decode("utf-8", "replace")
    before, mark, after = text.rpartition(MARK)
    try:
        told = read_json(after.partition("\n")[0], "the check", host).value if mark else None
    except AnswerError:
        told = None
    if isinstance(told, dict) and told.get("schema") == 1:
        return told
    lines = filter(None, map(clean, reversed((before if mark else text).splitlines())))
    said = next(lines, "its output cannot be read" if mark else "it printed nothing")
    raise HostError(f"checking its environment failed: {said}", where=host, hint=hint)


def _torch(value: object) -> Torch | None:
    table = _table(value)
    if not table:
        return None
    archs = table.get("archs")
    return Torch(
        version=_text(table.get("version"), 60) or "of an unknown version",
        cuda=_text(table.get("cuda"), 20),
        hip=_text(table.get("hip"), 40),
        archs=tuple(_text(a, 30) for a in archs[:_MOST]) if isinstance(archs, list) else (),
        nccl=_text(table.get("nccl"), 20),
    )


def _gpus(value: object) -> Iterator[ProbedGpu]:
    for number, table in enumerate(_tables(value)):
        index = whole(table.get("index"), 4)
        yield ProbedGpu(
            index=number if index is None else index,
            name=_text(table.get("name"), 100),
            capability=_capability(table.get("capability")),
            uuid=_text(table.get("uuid"), 100).removeprefix("GPU-"),
            free=_size(table.get("free")),
            total=_size(table.get("total")),
            shares=table.get("shares") is True,
            error=_text(table.get("error")),
            engine=_text(table.get("engine")),
        )


def _holders(value: object) -> Iterator[Holder]:
    for table in _tables(value):
        pid = whole(table.get("pid"), 9)
        if pid is not None:
            yield Holder(
                gpu=_text(table.get("gpu"), 100).removeprefix("GPU-"),
                pid=pid,
                name=_text(table.get("name"), 60),
                used=_size(table.get("used")),
            )


def _capability(value: object) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", value) if isinstance(value, str) else None
    return (int(match[1]), int(match[2])) if match else None


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tables(value: object) -> list[dict[str, Any]]:
    each = value[:_MOST] if isinstance(value, list) else []
    return [table for table in each if isinstance(table, dict)]


def _text(value: object, most: int = 400) -> str:
    return clean(value, most) if isinstance(value, str) else ""


def _some(value: object) -> str | None:
    return clean(value) if isinstance(value, str) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _size(value: object) -> int | None:
    """Return a number of bytes; one of more digits than memory can have is none."""
    return None if isinstance(value, bool) else whole(value, 18)
