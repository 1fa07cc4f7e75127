"""`imports.py` as if there were a Hopper GPU: what is named may look at it, and not compute."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

sys.setdlopenflags(os.RTLD_LAZY)
import torch  # noqa: E402
from vllm import platforms  # noqa: E402
from vllm.platforms.cuda import NonNvmlCudaPlatform  # noqa: E402
from vllm.platforms.interface import DeviceCapability  # noqa: E402


class Hopper(NonNvmlCudaPlatform):
    """Compute capability 9.0."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:  # noqa: ARG003
        return DeviceCapability(9, 0)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:  # noqa: ARG003
        return "Hopper"


torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda *_: (9, 0)
platforms._current_platform = Hopper()
runpy.run_path(str(Path(__file__).with_name("imports.py")), run_name="__main__")
