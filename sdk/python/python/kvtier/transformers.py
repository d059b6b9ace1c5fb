"""Prefixes of Hugging Face transformers' `DynamicCache`, kept in kvtier: a prompt's beginning that any process has computed is not computed again.

    cache = PrefixCache(model)
    answer = cache.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=100)

One sequence at a time (batch size 1), models whose layers all attend to all positions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import DynamicCache

import kvtier

from .chain import block_keys
from .weights import weights_identity


class PrefixCache:
    """The prefixes of one model. Whatever goes wrong with the daemon is a prefix that is not there."""

    def __init__(
        self,
        model: Any,
        *,
        socket: str | os.PathLike[str] | None = None,
        block_tokens: int = 64,
        salt: str | None = None,
        model_id: str | None = None,
        deadline_ms: int = 2000,
    ) -> None:
        """`model_id` says what the weights are; without it the files that the model was loaded from are read once. A model that was changed after loading
        (merged adapters, say) needs one of its own. Errors: `ValueError` for models whose cache cannot be cut into blocks."""
        layers = DynamicCache(config=model.config).layers
        if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
            raise ValueError(f"only layers that attend to all positions are supported, not {sorted({type(layer).__name__ for layer in layers})}")
        self.model = model
        self.block_tokens = block_tokens
        text = model.config.get_text_config(decoder=True)
        self._layers = len(layers)
        self._heads = text.num_key_value_heads
        self._width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._layer_bytes = 2 * self._heads * block_tokens * self._width * model.dtype.itemsize
        manifest = kvtier.Manifest(
            weights=identity(model, model_id),
            architecture=type(model).__name__,
            dtype=str(model.dtype).removeprefix("torch."),
            block_tokens=block_tokens,
            layers=self._layers,
            kv_heads=self._heads,
            head_dim=self._width,
            numerics=f"transformers={transformers.__version__};torch={torch.__version__};attention={model.config._attn_implementation};{model.device.type}",
        )
        form = kvtier.Opaque(layer_bytes=self._layer_bytes, layout="[keys | values][kv head][token][channel]")
        self.client = kvtier.Client(socket, manifest=manifest, form=form, salt=salt, name="transformers", deadline_ms=deadline_ms)

    def load(self, tokens: Sequence[int]) -> tuple[DynamicCache, int]:
        """A cache with the longest stored prefix of the tokens, and how many it covers: at most all but the last, whose logits are still to be computed."""
        cache = DynamicCache(config=self.model.config)
        keys = block_keys(tokens, self.block_tokens)[: (len(tokens) - 1) // self.block_tokens]
        staging = self._staging(len(keys))
        try:
            found = len(self.client.load(keys, self._slabs(staging), [[block] for block in range(len(keys))]).tiers) if keys else 0
        except kvtier.Error:
            found = 0
        if found:
            layers: list[Any] = cache.layers
            for number, layer in enumerate(layers):
                # [block, k or v, head, token, channel] -> [k or v, head, token, channel]
                whole = staging[number, :found].permute(1, 2, 0, 3, 4).reshape(2, self._heads, found * self.block_tokens, self._width)
                keys_and_values = whole.to(self.model.device, copy=True)
                layer.update(keys_and_values[0].unsqueeze(0), keys_and_values[1].unsqueeze(0))
        return cache, found * self.block_tokens

    def store(self, tokens: Sequence[int], cache: DynamicCache) -> int:
        """Offers the full blocks of a cache of these tokens; how many of them the daemon took. What it has already is not copied again."""
        computed = min(len(tokens), cache.get_seq_length())
        keys = block_keys(tokens[:computed], self.block_tokens)
        try:
            first = len(self.client.lookup(keys).tiers) if keys else 0
            missing = keys[first:]
            if not missing:
                return 0
            staging = self._staging(len(missing))
            begin, end = first * self.block_tokens, len(keys) * self.block_tokens
            layers: list[Any] = cache.layers
            for number, layer in enumerate(layers):
                both = torch.stack((layer.keys[0, :, begin:end], layer.values[0, :, begin:end])).cpu()
                staging[number] = both.reshape(2, self._heads, len(missing), self.block_tokens, self._width).permute(2, 0, 1, 3, 4)
            rows = [[block] for block in range(len(missing))]
            parent = keys[first - 1] if first else None
            return self.client.store(missing, self._slabs(staging), rows, parent=parent, depth=first).count("inserted")
        except kvtier.Error:
            return 0

    @torch.no_grad()
    def generate(self, input_ids: Any, **options: Any) -> Any:
        """`model.generate` on top of the stored prefix; the sequence's blocks are stored afterwards. Returns what `model.generate` would."""
        if input_ids.shape[0] != 1:
            raise ValueError("one sequence at a time")
        wants_all = options.pop("return_dict_in_generate", False)
        cache, _ = self.load(input_ids[0].tolist())
        answer = self.model.generate(input_ids, past_key_values=cache, return_dict_in_generate=True, **options)
        self.store(answer.sequences[0].tolist(), answer.past_key_values)
        return answer if wants_all else answer.sequences

    def close(self) -> None:
        """Ends the connection."""
        self.client.close()

    def _staging(self, blocks: int) -> torch.Tensor:
        return torch.empty((self._layers, blocks, 2, self._heads, self.block_tokens, self._width), dtype=self.model.dtype)

    def _slabs(self, staging: torch.Tensor) -> kvtier.Slabs:
        layers = [(layer.data_ptr(), layer.numel() * layer.element_size(), staging) for layer in staging]
        return kvtier.Slabs(layers, block_bytes=self._layer_bytes)


def identity(model: Any, model_id: str | None) -> bytes:
    """What the model computes: its weights and settings."""
    source = SimpleNamespace(model=model.config._name_or_path, revision=getattr(model.config, "_commit_hash", None))
    settings = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        settings.pop(name, None)
    settings["quantization_config"] = str(getattr(model, "hf_quantizer", None) and model.config.quantization_config)
    weights = weights_identity(source, model_id)
    return hashlib.sha256(weights + json.dumps(settings, sort_keys=True, default=str).encode()).digest()
