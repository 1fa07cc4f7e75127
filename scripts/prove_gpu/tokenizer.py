"""Save a tokenizer that is trained on Python's own library: python tokenizer.py TARGET.

For models with random weights, where no other is at hand.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, TURN = "<|endoftext|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=12288,  # more than the ids of `bench --synthetic`
    special_tokens=[END, "<|im_start|>", TURN],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
texts = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
tokenizer.train([str(path) for path in texts], trainer)
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token=END,
    eos_token=TURN,
    pad_token=END,
    chat_template=TEMPLATE,
).save_pretrained(sys.argv[1])
