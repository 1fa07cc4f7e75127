"""Makes a worker of a vLLM engine that spreads over hosts talk at the address of its own node.

vLLM imports this module in each worker (`worker_extension_cls`) before it connects them. What the
worker's environment already says goes first.
"""

from __future__ import annotations

import os

from raycluster.serve.engines.vllm_network import ADDRESS, interfaces, talking_at

if address := os.environ.get(ADDRESS):
    for name, value in talking_at(address, interfaces()).items():
        os.environ.setdefault(name, value)


class AtTheNodesAddress:
    """Adds nothing to vLLM's own class of workers: to import it is what matters."""
