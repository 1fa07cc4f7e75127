"""A random model of 7 million weights, which starts as fast as an engine can."""

from __future__ import annotations

import subprocess
from pathlib import Path

from raycluster.serve.settings import ModelSettings
from tests.local.cluster import made_by

NAME = "tiny"

_MAKE = """
import sys
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
torch.manual_seed(0)
config = Qwen2Config(
    hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=1024,
    tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
)
Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
"""


def tiny_model(folder: Path) -> str:
    """Make the model below `folder`, with the tokenizer of the small real one; return its path."""
    target = folder / "tiny-qwen2"
    python = f"{made_by('node-env')}/bin/python"
    subprocess.run([python, "-c", _MAKE, made_by("model"), target], check=True)
    return str(target)


def tiny(source: str) -> ModelSettings:
    """Return the settings that serve it on vLLM."""
    args = {"max_model_len": 512, "enforce_eager": True}
    return ModelSettings(NAME, source, engine="vllm", engine_args=args)
