"""A random model of 7 million weights, which starts as fast as an engine can."""

from __future__ import annotations

from raycluster.serve.settings import ModelSettings
from tests.local.cluster import made_by

NAME = "tiny"


def tiny() -> ModelSettings:
    """Return the settings that serve it on vLLM."""
    args = {"max_model_len": 512, "enforce_eager": True}
    return ModelSettings(NAME, made_by("tiny"), engine="vllm", engine_args=args)
