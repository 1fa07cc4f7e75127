"""What keeps engines from starting on GPUs most often: how it is told, why, and the cure; pure.

The signs are texts of torch 2.13, NCCL 2.29, Triton 3 and vLLM 0.32. Read on the laptop too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LOOK_AT_GPUS = "`raycluster check` checks the GPUs, `raycluster exec NODE -- nvidia-smi` inside"


@dataclass(frozen=True)
class Failure:
    """A failure that is known: `sign` is in the error, `context` in what was written before it.

    `cause` are words that stand for it, also in what the laptop is told; `cure` is the next step.
    The first group of `detail`, where that is found, is told in place of the error's own words.
    """

    cause: str
    cure: str
    sign: str
    context: str = ""
    detail: str = ""

    def explains(self, error: str, written: str) -> bool:
        """Tell whether this is what happened."""
        known = re.search(self.sign, error, re.S) is not None
        return known and (not self.context or re.search(self.context, written, re.S) is not None)


KNOWN = (
    Failure(
        "NVIDIA's fabric manager is not running, which this machine's GPUs need",
        "start it on the host: `sudo systemctl enable --now nvidia-fabricmanager`, in the version "
        "of the driver",
        r"system not yet initialized|cudaErrorSystemNotReady|Error 802\b",
    ),
    Failure(
        "the driver is too old for the engine's CUDA version",
        "update NVIDIA's driver on the host (CUDA 13 needs 580 or newer), or use an image built "
        "for an older CUDA",
        r"driver on your system is too old|driver version is insufficient for CUDA runtime"
        r"|unsupported display driver / cuda driver combination|Error 80[34]\b"
        r"|forward compatibility was attempted on non supported HW",
    ),
    Failure(
        "the container has lost its GPUs, as after `systemctl daemon-reload` on the host",
        "restart the node: `docker restart` on the host, then `raycluster up`; "
        "Docker's option `native.cgroupdriver=cgroupfs`, or CDI, prevents this",
        r"(?:NVML|NVMLError_Unknown).{0,40}Unknown Error",
    ),
    Failure(
        "NVIDIA's driver is not available to the engine",
        "with Docker, install nvidia-container-toolkit and restart Docker; without Docker, "
        "install the driver; "
        f"{LOOK_AT_GPUS}",
        r"libcuda\.so|libnvidia-ml\.so|NVML Shared Library Not Found"
        r"|Found no NVIDIA driver|Failed to infer device type",
    ),
    Failure(
        "no GPU is visible to the engine",
        "check `gpus` of the host, and whether runtime.env sets CUDA_VISIBLE_DEVICES; "
        f"{LOOK_AT_GPUS}",
        r"No CUDA GPUs are available|no CUDA-capable device|CUDA unknown error"
        r"|invalid device ordinal",
    ),
    Failure(
        "the engine has no kernels for this GPU type",
        "use a vLLM that supports the GPU's compute capability, or a newer one for a new GPU",
        r"no kernel image is available",
    ),
    Failure(
        "other programs use the GPU's memory",
        "`nvidia-smi` on the host lists them: stop them, or lower "
        "engine_args.gpu_memory_utilization",
        r"Free memory on device \S+ \([^)]*\) on startup is less than",
    ),
    Failure(
        "not enough GPU memory for the KV cache of one request of full length",
        "set engine_args.max_model_len to what fits, or raise gpu_memory_utilization",
        r"KV cache is needed, which is larger than the available KV cache memory",
        detail=r"(the estimated maximum model length is \d+)",
    ),
    Failure(
        "the weights leave no GPU memory for the KV cache",
        "raise engine_args.gpu_memory_utilization, or split the model with tensor_parallel_size",
        r"No available memory for the cache blocks",
    ),
    Failure(
        "out of GPU memory",
        "lower engine_args max_model_len, max_num_seqs or gpu_memory_utilization, or split the "
        "model with tensor_parallel_size",
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory",
    ),
    Failure(
        "Python's headers are missing, which are needed to compile kernels",
        "install them on the host or in the image: python3-dev (Debian) or python3-devel",
        r"CalledProcessError|CppCompileError|InductorError|Python\.h: No such file",
        context=r"Python\.h: No such file",
    ),
    Failure(
        "there is no C compiler, which is needed to compile kernels",
        "install gcc and g++ on the host or in the image, or set engine_args.enforce_eager",
        r"Failed to find C compiler|No working C\+\+ compiler|Compiler: \S+ is not found",
    ),
    Failure(
        "shared memory is too small for NCCL",
        "raise runtime.shm_size (Docker), or enlarge /dev/shm on the host",
        r"NCCL|DistBackendError",
        context=r"creating shared memory segment|/dev/shm\S* .{0,60}No space left",
    ),
    Failure(
        "the GPUs cannot reach each other (NCCL)",
        "set NCCL_SOCKET_IFNAME in runtime.env to the interface of private_address, and open the "
        "ports between the hosts; NCCL_DEBUG=INFO shows more",
        r"NCCL error|DistBackendError|nccl\w*Error",
        detail=r"Last error:\s*(?:\n[^\S\n]*)?(\S[^\n]*)",
    ),
)

SIGNALS = {
    4: Failure(
        "illegal instruction: this processor does not support it (signal 4)",
        "use an engine built for this processor",
        "",
    ),
    6: Failure("the engine aborted (signal 6)", "see `raycluster logs app`", ""),
    7: Failure(
        "shared memory or a file could not be read (signal 7)",
        "raise runtime.shm_size (Docker), and check the host's disks",
        "",
    ),
    9: Failure(
        "was killed (signal 9), usually because the host ran out of memory",
        "see `dmesg` on the host; use fewer replicas there, or a smaller model",
        "",
    ),
    11: Failure(
        "a crash in native code (signal 11)",
        "see `raycluster logs app` for the stack; other versions of vLLM, torch or the driver "
        "may help",
        "",
    ),
    15: Failure("was asked to terminate (signal 15)", "`raycluster logs app`", ""),
}
"""How a process of an engine was ended, by the signal's number."""


def known(error: str, written: str = "") -> str:
    """Return why an engine failed in words and the program's own, or "" where it is not known.

    `error` is the error's text, `written` what the engine's processes wrote up to it.
    """
    for failure in KNOWN:
        if failure.explains(error, f"{written}\n{error}"):
            found = re.search(failure.detail, f"{error}\n{written}") if failure.detail else None
            return f"{failure.cause}: {found[1].strip() if found else error}"
    return ""


def ended(signal: int) -> str:
    """Return what is told of a process that a signal ended."""
    failure = SIGNALS.get(signal)
    return f"the engine's process: {failure.cause if failure else f'signal {signal}'}"


def cure(cause: str) -> str:
    """Return the next step for a cause that `known` or `ended` returned, or ""."""
    every = (*KNOWN, *SIGNALS.values())
    return next((failure.cure for failure in every if failure.cause in cause), "")
