"""What users of GPUs meet first: told in words, each with a cure, from logs of its real shape."""

from __future__ import annotations

import pytest

from raycluster.serve.failures import KNOWN, SIGNALS, cure
from raycluster.serve.rootcause import LONGEST, MARK, explain, root_cause, why_dead

PARENT = RuntimeError(
    "Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {'EngineCore_DP0': 1}"
)
LINE = "(EngineCore_DP0 pid=4242) ERROR 11-29 10:11:12 [core.py:1211] "


def log(*lines: str) -> str:
    """Return lines as vLLM's engine process writes them, after others that say nothing."""
    before = f"INFO 11-29 10:11:10 [api_server.py:1] starting\n{LINE}EngineCore failed to start.\n"
    frame = f'{LINE}  File "/usr/lib/python3.12/site-packages/vllm/v1/engine/core.py", line 1, in x'
    return f"{before}{LINE}Traceback (most recent call last):\n{frame}\n" + "".join(
        f"{LINE}{line}\n" for line in lines
    )


CASES = [
    (
        ("RuntimeError: Failed to infer device type, please set the environment variable "
         "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",),
        "NVIDIA's driver is not available to the engine", "nvidia-container-toolkit",
    ),
    (
        ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",),
        "NVIDIA's driver is not available to the engine", "nvidia-container-toolkit",
    ),
    (
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 12040). Please "
         "update your GPU driver by downloading and installing a new version from the URL: "
         "http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to "
         "install a PyTorch version that has been compiled with your version of the CUDA driver.",),
        "the driver is too old for the engine's CUDA", "580 or newer",
    ),
    (
        ("RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda "
         "functions before calling NumCudaDevices() that might have already set an "
         "error? Error 803: system has unsupported display driver / cuda driver combination",),
        "the driver is too old for the engine's CUDA", "580 or newer",
    ),
    (
        ("RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda "
         "functions before calling NumCudaDevices() that might have already set an "
         "error? Error 802: system not yet initialized",),
        "NVIDIA's fabric manager is not running", "nvidia-fabricmanager",
    ),
    (
        ("RuntimeError: No CUDA GPUs are available",),
        "no GPU is visible", "CUDA_VISIBLE_DEVICES",
    ),
    (
        ("ValueError: Free memory on device cuda:0 (3.21/79.11 GiB) on startup is less than "
         "desired GPU memory utilization (0.8, 63.29 GiB). Decrease GPU memory utilization or "
         "reduce GPU memory used by other processes.",),
        "other programs use the GPU's memory: ",
        "nvidia-smi",
    ),
    (
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
         "total capacity of 79.11 GiB of which 1.21 GiB is free. Process 4711 has 70.00 GiB "
         "memory in use. Of the allocated memory 7.11 GiB is allocated by PyTorch.",),
        "out of GPU memory", "max_num_seqs",
    ),
    (
        ("ValueError: To serve at least one request with the model's max seq len (131072), (16.0 "
         "GiB KV cache is needed, which is larger than the available KV cache memory (3.42 GiB). "
         "Based on the available memory, the estimated maximum model length is 27936. Try "
         "increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU backend) "
         "or decreasing `max_model_len` when initializing the engine.",),
        "the estimated maximum model length is 27936", "max_model_len",
    ),
    (
        ("ValueError: No available memory for the cache blocks. Try increasing "
         "`gpu_memory_utilization` when initializing the engine.",),
        "the weights leave no GPU memory", "tensor_parallel_size",
    ),
    (
        ("/tmp/tmpab1c/cuda_utils.c:6:10: fatal error: Python.h: No such file or directory",
         "    6 | #include <Python.h>", "compilation terminated.",
         "subprocess.CalledProcessError: Command '['/usr/bin/gcc', '/tmp/tmpab1c/cuda_utils.c', "
         "'-O3', '-shared', '-fPIC', '-o', '/tmp/tmpab1c/cuda_utils.so']' returned non-zero exit "
         "status 1."),
        "Python's headers are missing", "python3-dev",
    ),
    (
        ("torch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler. Please "
         "specify via CC environment variable or set triton.knobs.build.impl.",),
        "there is no C compiler", "gcc",
    ),
    (
        ("torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/"
         "ProcessGroupNCCL.cpp:3690, unhandled system error (run with NCCL_DEBUG=INFO for details),"
         " NCCL version 2.29.7",
         "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or "
         "device error. ",
         "Last error:",
         "socketPollConnect: connect to 10.0.0.2<43210> returned Connection refused, exceeded "
         "error retry count after 35 attempts"),
        "cannot reach each other (NCCL): socketPollConnect: connect to 10.0.0.2<43210> returned",
        "NCCL_SOCKET_IFNAME",
    ),
    (
        ("gpu-1:77:99 [1] misc/shmutils.cc:87 NCCL WARN Error: failed to extend /dev/shm/nccl-PmVn "
         "to 33030532 bytes, error: No space left on device (28)",
         "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"),
        "shared memory is too small for NCCL", "shm_size",
    ),
    (
        ("RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",),
        "the GPUs cannot reach each other (NCCL)", "NCCL_DEBUG",
    ),
    (
        ("pynvml.NVMLError_Unknown: Unknown Error",),
        "the container has lost its GPUs", "docker restart",
    ),
    (
        ("RuntimeError: Failed to initialize NVML: Unknown Error",),
        "the container has lost its GPUs", "docker restart",
    ),
    (
        ("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the "
         "device", "CUDA kernel errors might be asynchronously reported at some other API call."),
        "no kernels for this GPU type", "compute capability",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "cause", "step"), CASES)
def test_a_start_that_fails_in_the_engine_s_process(
    lines: tuple[str, ...], cause: str, step: str
) -> None:
    told = explain(PARENT, log(*lines))
    assert cause in told
    assert "\n" not in told
    assert len(told) <= LONGEST
    assert step in cure(root_cause(f"RuntimeError: {MARK}vllm: {told}"))


@pytest.mark.parametrize(("lines", "cause", "step"), CASES)
def test_the_same_in_the_replica_s_own_process(
    lines: tuple[str, ...], cause: str, step: str
) -> None:
    told = explain(RuntimeError("\n".join(lines)), "")
    assert cause in told
    assert step in cure(told)


@pytest.mark.parametrize(("lines", "cause", "step"), CASES)
def test_an_engine_that_dies_of_it_later(lines: tuple[str, ...], cause: str, step: str) -> None:
    dead = RuntimeError("EngineCore encountered an issue. See stack trace (above) for the cause.")
    told = why_dead(dead, log(*lines))
    assert cause in told
    assert step in cure(told)


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (9, "was killed (signal 9), usually because the host ran out of memory"),
        (11, "a crash in native code (signal 11)"),
        (7, "(signal 7)"),
        (4, "does not support it (signal 4)"),
        (6, "(signal 6)"),
        (15, "(signal 15)"),
        (31, "signal 31"),
    ],
)
def test_a_signal_is_told_as_what_it_is(signal: int, words: str) -> None:
    error = RuntimeError(f"See root cause above. Failed core proc(s): {{'EngineCore': -{signal}}}")
    told = explain(error, "")
    assert told.startswith("the engine's process: ")
    assert words in told
    assert ("ran out of memory" in told) == (signal == 9)
    assert bool(cure(told)) == (signal in SIGNALS)


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (ValueError("max_model_len is too large"), ""),
        (KeyError("model_type"), "WARNING: No CUDA GPUs are available"),
        (ImportError("No module named 'flash_attn'"), ""),
    ],
)
def test_what_is_not_known_keeps_its_own_words(error: Exception, written: str) -> None:
    told = explain(error, written)
    assert told.startswith(type(error).__name__)
    assert cure(told) == ""


def test_every_known_failure_is_shown_above() -> None:
    said = {explain(PARENT, log(*lines)).partition(": ")[0] for lines, _, _ in CASES}
    assert {failure.cause for failure in KNOWN} == said
