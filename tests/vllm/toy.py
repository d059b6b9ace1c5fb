"""Toy models, made here without any download: `python toy.py FOLDER [tiny|other|wide]`.

`tiny`: 4 layers, 2 KV heads of 64 (2 KiB of KV a token). `other`: the same with other weights. `wide`: Llama-3-8B's KV (32 layers, 8 heads of 128: 128 KiB a
token) around a toy network.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# With the usual range of 0.02 such a model repeats one token, and no test would notice damaged KV.
SPREAD = 0.15

SHAPES = {
    "tiny": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64),
    "wide": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=32, num_attention_heads=8, num_key_value_heads=8, head_dim=128),
}
SHAPES["other"] = SHAPES["tiny"]
SEEDS = {"tiny": 1, "wide": 1, "other": 2}


def build(folder: Path, name: str) -> None:
    """Writes a model and its tokenizer of single bytes."""
    torch.manual_seed(SEEDS[name])
    config = LlamaConfig(
        vocab_size=512, max_position_embeddings=8192, initializer_range=SPREAD, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257, **SHAPES[name]
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: number for number, letter in enumerate(sorted(letters))}
    special = ["<s>", "</s>", "<pad>"]
    vocabulary.update({token: 256 + number for number, token in enumerate(special)})
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2]).save_pretrained(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for model in sys.argv[2:] or list(SHAPES):
        if not (target / model / "config.json").is_file():
            build(target / model, model)
        print(target / model)
