"""The image of the lab: a small Debian with what Python, Ray and vLLM need, nginx and Prometheus.

The Python environment itself is not in it: containers mount it at its own path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

IMAGE = "raycluster-lab:1"
PACKAGES = (
    *("ca-certificates", "libgomp1", "libnuma1", "procps", "iproute2", "python3.11"),
    *("nginx", "prometheus"),
)
USELESS = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt"),
    *("usr/bin/promtool", "usr/share/javascript", "usr/share/nodejs"),
)


def cache_folder() -> Path:
    """Return the folder that keeps what is slow to make, as the scripts use it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raycluster"


def cached(name: str, key: tuple[object, ...], make: Callable[[Path], None]) -> Path:
    """Return the tar file of that name and key, which `make` writes on first use."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    archive = cache_folder() / f"{name}-{digest}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with archive.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits, and then finds it made
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f"{name}-") as making:
                make(Path(making) / "new.tar")
                (Path(making) / "new.tar").rename(archive)
    return archive


def image_archive() -> Path:
    """Return the image's root file system as a tar file (half a minute on first use)."""
    return cached("lab-image", (PACKAGES, USELESS), _bootstrap)


def _bootstrap(archive: Path) -> None:
    root = archive.with_name("root")
    include = f"--include={','.join(PACKAGES)}"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", include, "bookworm", str(root)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise RuntimeError(f"debootstrap failed:\n{made.stdout[-2000:]}{made.stderr}")
    subprocess.run(["rm", "-r", *(root / path for path in USELESS)], check=True)
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
