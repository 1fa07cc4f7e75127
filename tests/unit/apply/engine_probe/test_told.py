"""What the program in a node's environment prints is judged, whatever it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raycluster.apply.engine_probe import on_node, told
from raycluster.apply.engine_probe.told import MARK, Holder, read
from raycluster.core.errors import HostError

PROGRAM = Path(on_node.__file__).read_text()


def said(**table: object) -> bytes:
    return f"a warning\n{MARK}{json.dumps({'schema': 1, **table})}\n".encode()


def test_the_program_and_its_reader_agree_on_the_mark() -> None:
    assert (on_node.MARK, on_node.SCHEMA) == (told.MARK, 1)


def test_an_environment_without_torch_is_told_part_by_part() -> None:
    """Any Python will do: nothing of ours and nothing but the standard library is there."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM], input=b"{}", capture_output=True, check=True
    )
    seen = read(done.stdout, "gpu-1")
    assert seen.failed == {"torch": "ModuleNotFoundError: No module named 'torch'"}
    assert seen.torch is None
    assert None not in (seen.compiler, seen.headers, seen.nvcc, seen.ninja, seen.shm, seen.memlock)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11:"),
        ("import os; print('terminate called', flush=True); os._exit(3)",
         "exited: terminate called"),
        ("raise ImportError('libcudart.so.13: cannot open')", "ImportError: libcudart.so.13"),
        ("import time; time.sleep(60)", "did not finish within 1 s"),
    ],
)  # fmt: skip
def test_a_torch_that_takes_its_process_with_it(tmp_path: Path, body: str, why: str) -> None:
    (tmp_path / "torch.py").write_text(body)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace('"torch": 60.0', '"torch": 1.0')],
        input=b"",
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        timeout=30,
    )
    seen = read(done.stdout, "gpu-1")
    assert list(seen.failed) == ["torch"]
    assert seen.failed["torch"].startswith(why)
    assert seen.headers is not None


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("GPU-1a, 4242, /opt/a,b/python, 71234",
         {"gpu": "GPU-1a", "pid": 4242, "name": "/opt/a,b/python", "used": 71234 << 20}),
        ("GPU-1a, 4242, [Not Found], [N/A]",
         {"gpu": "GPU-1a", "pid": 4242, "name": "[Not Found]", "used": None}),
        ("No running processes found", None),
        ("GPU-1a, x, y, 3", None),
    ],
)  # fmt: skip
def test_who_holds_memory(line: str, row: object) -> None:
    assert on_node.holder(line) == row


def test_values_of_another_form_are_not_taken() -> None:
    digits = "9" * 310
    many = f'{{"schema": 1, "count": {digits}, "memlock": {digits}, "shm": {{"size": 1e999}}}}'
    seen = read(f"{MARK}{many}".encode(), "h")
    assert (seen.count, seen.memlock, seen.shm) == (None, None, None)
    seen = read(
        said(
            torch={"version": "x\x1b[31m" * 500, "archs": [1, {}, "sm_90"], "cuda": 13},
            gpus=[None, [], {"index": -1, "name": ["x"], "capability": "9", "free": True}],
            holders=[{"pid": "x"}, {"pid": 7, "gpu": "GPU-a", "name": "p", "used": 1}],
            failed=[],
            memlock=-1,
            compiler=None,
            headers="yes",
        ),
        "h",
    )
    assert seen.torch is not None
    assert seen.torch.archs == ("", "", "sm_90")
    assert "\x1b" not in seen.torch.version
    assert [(g.index, g.name, g.capability, g.free) for g in seen.gpus] == [(0, "", None, None)]
    assert seen.holders == (Holder("a", 7, "p", 1),)
    assert (seen.memlock, seen.compiler, seen.headers, seen.failed) == (-1, None, None, {})


def test_a_count_of_five_thousand_digits_is_not_told() -> None:
    output = MARK.encode() + b'{"schema": 1, "count": ' + b"9" * 5000 + b"}"
    assert read(output, "gpu-1").count is None


@pytest.mark.parametrize(
    ("output", "what"),
    [
        (b"", "it printed nothing"),
        (b"sh: 1: python: not found\n", "sh: 1: python: not found"),
        (b"Traceback\nMemoryError\n\n", "MemoryError"),
        (said(count=12345)[:-9], "a warning"),
        (MARK.encode() + b"[" * 200_000, "cannot be read"),
        (MARK.encode() + b"[]", "cannot be read"),
        (said(schema=2), "a warning"),
        (b"\xff" * 100, "it printed nothing"),
        (b"x" * 100_000_000, "printed too much output"),
    ],
)
def test_output_that_is_not_the_programs_is_one_error(output: bytes, what: str) -> None:
    with pytest.raises(HostError, match=what) as caught:
        read(output, "gpu-1")
    assert caught.value.where == "gpu-1"
    assert len(str(caught.value)) < 500


TORCH = """
import time
from contextlib import nullcontext
from types import SimpleNamespace as Of

__version__ = "2.13.0+cu130"
version = Of(cuda="13.0", hip=None)
GONE = "CUDA error: no kernel image is available for execution on the device"


class One:
    def __init__(self, value):
        self.value = value

    def __add__(self, more):
        return One(self.value + more)

    def __getitem__(self, _):
        return self

    def contiguous(self):
        return self

    def item(self):
        return self.value


def zeros(shape, device, dtype=None):
    if device == "cuda:1":
        raise RuntimeError(GONE)
    if device == "cuda:2":
        time.sleep(60)
    return One(0)


def silu_and_mul(result, given):
    raise RuntimeError("not for this GPU")


float16 = None
ops = Of(_C=Of(silu_and_mul=silu_and_mul))
cuda = Of(
    get_arch_list=lambda: ["sm_75", "sm_90"],
    nccl=Of(version=lambda: (2, 29, 7)),
    device_count=lambda: 4,
    init=lambda: None,
    get_device_properties=lambda n: Of(name=f"H{n}", major=9, minor=0, uuid="1a", is_integrated=0),
    mem_get_info=lambda n: (5 << 30, 79 << 30),
    device=lambda n: nullcontext(),
    synchronize=lambda n: None,
)
"""


def test_each_gpu_is_tried_until_one_hangs(tmp_path: Path) -> None:
    """torch is a double: what is told of a GPU that works, one that does not, one that hangs."""
    (tmp_path / "torch.py").write_text(TORCH)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("KERNEL_S = 20.0", "KERNEL_S = 1.0")],
        input=b'{"env": {"CC": "/nowhere"}}',
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        timeout=30,
    )
    seen = read(done.stdout, "gpu-1")
    assert seen.torch == told.Torch("2.13.0+cu130", "13.0", "", ("sm_75", "sm_90"), "2.29.7")
    assert (seen.vllm, seen.count, seen.init, seen.compiler) == (False, 4, "", "")
    good, bad = seen.gpus
    assert (good.index, good.name, good.capability, good.uuid) == (0, "H0", (9, 0), "1a")
    assert (good.free, good.total) == (5 << 30, 79 << 30)
    assert (good.error, good.engine) == ("", "RuntimeError: not for this GPU")
    assert "no kernel image is available" in bad.error
    assert seen.failed == {"gpu 2": "did not finish within 1 s"}
