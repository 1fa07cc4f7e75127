"""Save a model of Qwen2.5-0.5B's shape with random weights: python save_qwen.py MODEL TARGET.

MODEL is a folder whose tokenizer is taken, TARGET a new one. The vocabulary is filled up to the
shape's, so that each token which random weights may choose has a text. It answers nonsense at the
shape's speed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

_, source, target = sys.argv
tokenizer = AutoTokenizer.from_pretrained(source)
Path(target).mkdir()  # never into a model that is there
config = Qwen2Config(
    hidden_size=896,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
    vocab_size=151936,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
    rope_theta=1000000.0,
)
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
Qwen2ForCausalLM(config).save_pretrained(target)
tokenizer.save_pretrained(target)
path = Path(target, "tokenizer.json")
content = json.loads(path.read_text())
words = content["model"]["vocab"]
taken = {*words.values(), *(added["id"] for added in content["added_tokens"])}
words.update(
    {f"\u0120{number}": number for number in range(config.vocab_size) if number not in taken}
)
path.write_text(json.dumps(content))
