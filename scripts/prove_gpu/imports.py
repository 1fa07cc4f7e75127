"""Import what is named on standard input, line by line, and say what does not go: JSON lines.

A line is printed before each attempt, so that a crash has a name.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

sys.setdlopenflags(os.RTLD_LAZY)  # as functions of a driver that is not there are not called
import torch  # noqa: E402, F401 - extensions expect it

for name in sys.stdin.read().split():
    print(json.dumps({"module": name}), flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:  # one that panics ends no other
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        print(json.dumps({"module": name, "error": told}), flush=True)
