"""Save a tiny model with random weights and a real tokenizer: python save_tiny.py MODEL TARGET.

It answers nonsense at the speed of the machinery around it, for tests and benchmarks of that.
MODEL is a folder whose tokenizer is taken.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

_, source, target = sys.argv
tokenizer = AutoTokenizer.from_pretrained(source)
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=len(tokenizer),
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
)
Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
tokenizer.save_pretrained(target)
