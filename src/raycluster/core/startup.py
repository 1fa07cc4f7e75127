"""Makes the program's start cheap: a command's imports take longer than most answers of a host."""

from __future__ import annotations

import gc
import os
import sys
from types import ModuleType
from typing import cast

OPTIONAL = ("invoke", "httpx._main")
"""What paramiko (`Match exec` in its reader of ssh_config) and httpx (its command line) import
where it is there, and go on without where it is not. Nothing here uses either."""
_GARBAGE = 20_000  # objects; at Python's 700 an import is interrupted by hundreds of collections


def begin() -> None:
    """Keep the later imports of this process short; called once, by the command line alone."""
    gc.set_threshold(_GARBAGE)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # reads every package's metadata
    for name in OPTIONAL:
        sys.modules.setdefault(name, cast(ModuleType, None))  # then importing it raises ImportError
