"""The packages of environments that are made on hosts, each with its version and hashes."""

from __future__ import annotations

from importlib import resources

GPU_LOCK = (resources.files(__name__) / "node-gpu.txt").read_bytes()
"""What a native host with NVIDIA GPUs gets: of every processor and Python that is supported."""
