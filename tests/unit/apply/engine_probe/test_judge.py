"""What keeps engines from starting, from what the program in a node's environment found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raycluster.apply.engine_probe.judge import ProbeRequest, asked, holds, judge, summary
from raycluster.apply.engine_probe.told import MARK, ProbeResult, read
from raycluster.spec import Model

GIB = 1 << 30
H100 = {
    "name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "uuid": "1a", "shares": False,
    "free": 78 * GIB, "total": 79 * GIB, "error": "", "engine": "",
}  # fmt: skip
OLD = (
    "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please "
    "update your GPU driver"
)
INIT = "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error {}"
NO_IMAGE = "AcceleratorError: CUDA error: no kernel image is available for execution on the device"
FULL = "AcceleratorError: CUDA error: out of memory"
CPU_TORCH = {"version": "2.13.0+cpu", "cuda": "", "hip": "", "archs": [], "nccl": ""}
SMALL_SHM = {"size": 64 << 20, "free": 0}


def well(**changes: Any) -> ProbeResult:
    """Return what a host says where all checks passed, but for the changes."""
    table: dict[str, Any] = {
        "schema": 1,
        "failed": {},
        "compiler": "/usr/bin/gcc",
        "headers": True,
        "nvcc": "/usr/local/cuda/bin/nvcc",
        "ninja": "/usr/bin/ninja",
        "flashinfer": "compiles",
        "libcuda": "",
        "shm": {"size": 8 * GIB, "free": 8 * GIB},
        "memlock": -1,
        "infiniband": False,
        "holders": [],
        "torch": {
            "version": "2.13.0+cu130", "cuda": "13.0", "hip": "", "nccl": "2.29.7",
            "archs": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        },
        "vllm": {"found": True, "error": "", "more": ""},
        "count": 2,
        "init": "",
        "gpus": [{"index": n, **H100} for n in range(2)],
    }  # fmt: skip
    return read(f"{MARK}{json.dumps({**table, **changes})}".encode(), "gpu-1")


def gpus(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"gpus": [{"index": n, **H100, **each} for n, each in enumerate(changes)]}


ASKED = ProbeRequest(gpus=2, visible=2, share=0.8)


def test_nothing_is_said_where_all_is_well() -> None:
    verdict = judge(well(), ASKED)
    assert (verdict.errors, verdict.notes) == ((), ())
    assert summary(well()) == (
        "kernels run on 2 x NVIDIA H100 80GB HBM3; torch 2.13.0+cu130, CUDA 13.0; NCCL 2.29.7"
    )


@pytest.mark.parametrize(
    ("changes", "what", "hint"),
    [
        ({"failed": {"torch": "ModuleNotFoundError: No module named 'torch'"}, "torch": None},
         "the environment has no torch", "an image with vLLM"),
        ({"failed": {"torch": "killed by signal 11: "}, "torch": None},
         "torch cannot be loaded: the engine's process: a crash in native code (signal 11)",
         "other versions of vLLM, torch or the driver"),
        ({"failed": {"torch": "OSError: libcudart.so.13: cannot open"}, "torch": None},
         "torch cannot be loaded: OSError: libcudart.so.13", "must match"),
        ({"torch": CPU_TORCH, "count": 0, "gpus": []},
         "the environment has a CPU build of torch (2.13.0+cpu), but the cluster uses 2 GPUs",
         "gpus = 0"),
        ({"init": OLD, "count": 0, "gpus": []}, "the driver is too old", "580"),
        ({"init": INIT.format("802: system not yet initialized"), "gpus": []},
         "fabric manager", "nvidia-fabricmanager"),
        ({"init": INIT.format("803: system has unsupported display driver / cuda driver"),
          "gpus": []}, "the driver is too old", "update NVIDIA's driver"),
        ({"init": "RuntimeError: Found no NVIDIA driver on your system.", "count": 0, "gpus": []},
         "NVIDIA's driver is not available to the engine", "nvidia-container-toolkit"),
        ({"init": "RuntimeError: something new", "count": 0, "gpus": []},
         "CUDA fails to initialize in the environment: RuntimeError: something "
         "new", "raycluster check"),
        ({"count": 1, **gpus({})}, "torch sees 1 of the 2 GPUs", "CUDA_VISIBLE_DEVICES"),
        (gpus({"error": NO_IMAGE, "capability": "6.1", "name": "GTX 1080"}, {}),
         "has compute capability 6.1", "compute capability"),
        (gpus({}, {"error": "RuntimeError: odd"}),
         "no kernel runs on GPU 1 (NVIDIA H100 80GB HBM3): RuntimeError: odd", "raycluster check"),
        ({"failed": {"gpu 1": "did not finish within 20 s"}, **gpus({})},
         "CUDA hangs on GPU 1: a program with a single addition did not finish within 20 "
         "s", "dmesg"),
        ({"failed": {"gpu 0": "killed by signal 6: terminate called"}, "gpus": []},
         "CUDA fails on GPU 0: the engine's process: the engine aborted", "raycluster logs"),
        ({"vllm": {"found": True, "more": "", "error": "ImportError: _C.so: undefined symbol: _Z"}},
         "vLLM's kernel library does not load: ImportError: _C.so: undefined", "must match"),
        ({"vllm": {"found": False, "error": "", "more": ""}}, "the environment has no vLLM", ""),
        ({"failed": {"vllm": "killed by signal 4: "}, "vllm": None}, "(signal 4)",
         "this processor"),
        (gpus({"engine": NO_IMAGE}, {}),
         "vLLM's kernels do not run on GPU 0 (NVIDIA H100 80GB HBM3): the engine has no kernels",
         "compute capability"),
        (gpus({"free": 3 * GIB}, {"free": GIB}),
         "the GPU's memory is used by other programs: 3.0 of 79.0 GiB are free on GPU "
         "0", "stop them"),
        (gpus({"error": FULL}, {"error": FULL}), "there is no free memory on GPU 0", "stop them"),
    ],
)  # fmt: skip
def test_the_first_cause(changes: dict[str, Any], what: str, hint: str) -> None:
    error = judge(well(**changes), ASKED).errors[0]
    assert what in error.what
    assert hint in error.hint


@pytest.mark.parametrize(
    ("changes", "what", "hint"),
    [
        ({"compiler": ""}, "there is no C compiler", "engine_args.enforce_eager"),
        ({"headers": False}, "Python's headers are missing", "engine_args.enforce_eager"),
        ({"nvcc": "", "ninja": ""}, "there is no nvcc and no ninja", "flashinfer-cubin"),
        ({"nvcc": ""}, "there is no nvcc, which FlashInfer", "CUDA toolkit"),
        ({"shm": SMALL_SHM}, "shared memory (/dev/shm) has 0.06 GiB", "runtime.shm_size"),
        ({"infiniband": True, "memlock": 65536}, "low for RDMA", "ulimit -l"),
        ({"libcuda": "no such file"}, "libcuda.so.1 does not load: no such file", "check"),
        ({"vllm": {"found": True, "error": "", "more": "ImportError: odd"}},
         "some of vLLM's kernels do not load: those of mixture-of-experts models: ImportError: "
         "odd", ""),
        ({"failed": {"holders": "TimeoutExpired: nvidia-smi"}},
         "holders could not be checked: TimeoutExpired: nvidia-smi", ""),
        ({"failed": {"torch": "did not finish within 60 s"}, "torch": None, "count": None,
          "gpus": []},
         "torch could not be checked: did not finish within 60 s", ""),
        ({"failed": {"vllm": "did not finish within 30 s"}, "vllm": None, "count": None,
          "gpus": []},
         "vllm could not be checked: did not finish within 30 s", ""),
    ],
)  # fmt: skip
def test_what_a_person_should_know(changes: dict[str, Any], what: str, hint: str) -> None:
    verdict = judge(well(**changes), ProbeRequest(gpus=2, visible=2, share=0.8, tensor=True))
    assert verdict.errors == ()
    [note] = verdict.notes
    assert what in note.what
    assert hint in note.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"flashinfer": "ready", "nvcc": "", "ninja": ""},
        {"flashinfer": "", "nvcc": ""},
        {"shm": SMALL_SHM},
        {"memlock": 65536},
        {"count": 3, **gpus({}, {}, {"error": "RuntimeError: not ours"})},
        gpus({"shares": True, "free": GIB}, {}),
        gpus({"free": None}, {}),
        {"torch": {"version": "2.13+rocm", "hip": "7.0", "archs": ["gfx942"]}, "libcuda": "none",
         "nvcc": ""},
    ],
)  # fmt: skip
def test_what_is_no_matter(changes: dict[str, Any]) -> None:
    verdict = judge(well(**changes), ASKED)
    assert (verdict.errors, verdict.notes) == ((), ())


def test_memory_of_one_gpu_among_others_is_a_note_that_names_who_holds_it() -> None:
    found = well(
        **gpus({"free": 10 * GIB}, {"uuid": "2b"}),
        holders=[
            {"gpu": "GPU-1a", "pid": 42, "name": "python3", "used": 60 * GIB},
            {"gpu": "GPU-2b", "pid": 43, "name": "Xorg", "used": GIB},
        ],
    )
    verdict = judge(found, ASKED)
    assert verdict.errors == ()
    assert verdict.notes[0].what == (
        "the GPU's memory is used by python3 (pid 42, 60.0 GiB): 10.0 of 79.0 GiB are free on "
        "GPU 0 (NVIDIA H100 80GB HBM3), but a replica takes 80%"
    )
    ours = judge(found, ProbeRequest(gpus=2, visible=2, share=0.8, ours=True))
    assert (ours.errors, ours.notes) == ((), ())


def test_an_engine_that_may_fall_back_is_no_error() -> None:
    broken = well(vllm={"found": True, "error": "ImportError: x", "more": ""})
    verdict = judge(broken, ProbeRequest(gpus=2, visible=2, vllm="may"))
    assert verdict.errors == ()
    assert "ImportError: x" in verdict.notes[0].what
    verdict = judge(broken, ProbeRequest(gpus=2, visible=2, vllm="no"))
    assert (verdict.errors, verdict.notes) == ((), ())


@pytest.mark.parametrize(
    ("archs", "capability", "code"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_120a",), (12, 1), False),
        (("sm_100f",), (10, 3), True),
        (("sm_120",), (12, 1), True),
        (("compute_80",), (12, 0), True),
        (("compute_90",), (8, 0), False),
        (("gfx942", "", "sm_"), (9, 4), False),
    ],
)
def test_code_for_a_capability(
    archs: tuple[str, ...], capability: tuple[int, int], code: bool
) -> None:
    assert holds(archs, capability) is code


def model(**table: Any) -> Model:
    return Model.model_validate({"name": "m", **table})


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([model()], ProbeRequest(4, 4, "must", 0.8)),
        ([model(fallback=True)], ProbeRequest(4, 4, "may", 0.8)),
        ([model(engine="transformers")], ProbeRequest(4, 4, "no", 0.0)),
        ([model(engine="transformers"), model(name="n")], ProbeRequest(4, 4, "must", 0.0)),
        ([model(num_gpus=0.5)], ProbeRequest(4, 4, "must", 0.4)),
        ([model(engine_args={"gpu_memory_utilization": 0.9, "tensor_parallel_size": 2})],
         ProbeRequest(4, 4, "must", 0.9, tensor=True)),
        ([model(engine_args={"kv_cache_memory_bytes": 1 << 30})], ProbeRequest(4, 4, "must", 0.0)),
        ([model(num_gpus=0)], None),
        ([], None),
    ],
)  # fmt: skip
def test_what_is_asked(models: list[Model], expected: ProbeRequest | None) -> None:
    assert asked(models, 4, slices=False) == expected
    assert asked(models, 0, slices=False) is None


def test_one_process_sees_one_slice() -> None:
    assert asked([model()], 3, slices=True) == ProbeRequest(3, 1, "must", 0.8)
