"""The program's start: what other packages import for uses that are none of ours is left out."""

import subprocess
import sys

SCRIPT = """
import gc, sys
from raycluster.core import startup
startup.begin()
import httpx, paramiko.config, pydantic
class Part(pydantic.BaseModel):
    port: int
assert Part(port=1).port == 1 and httpx.Client and paramiko.Transport
print(gc.get_threshold()[0], paramiko.config.invoke, httpx.main.__module__)
print(*(n for n in ("click", "invoke", "pygments", "yaml") if sys.modules.get(n)))
"""


def test_optional_imports_of_others_are_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["20000 None httpx", ""]


def test_the_command_line_begins_with_it() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-c"),
            "import sys; sys.argv = ['raycluster', 'status', 'no.toml']\n"
            "from raycluster.cli import main\nmain()",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "no.toml: no such file" in done.stderr
    assert "raycluster.core.startup" in imported
    assert imported.isdisjoint({"paramiko", "docker", "httpx", "raycluster.plan.forecast.whole"})
