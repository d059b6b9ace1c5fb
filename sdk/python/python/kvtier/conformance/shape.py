"""What a simulated engine is like, and what it tells its connectors of itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .content import CHANNELS


@dataclass(frozen=True)
class Shape:
    """An engine."""

    model: str = "toy"
    ranks: int = 1
    layers: int = 2
    blocks: int = 40
    block_tokens: int = 4
    step_tokens: int = 24
    extra: dict[str, Any] = field(default_factory=dict)
    """`kv_connector_extra_config`."""


class FullAttentionSpec(SimpleNamespace):
    """Named as vLLM's."""


class Backend:
    """The attention backend that lays blocks out."""

    @staticmethod
    def get_name() -> str:
        return "CONFORMANCE"


_folder = tempfile.TemporaryDirectory(prefix="kvtier-conformance-")


def model_folder(name: str) -> Path:
    """A folder with the weights and settings of a toy model; equal names, equal weights."""
    folder = Path(_folder.name) / name
    if not folder.is_dir():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(name.encode() * 100)
        (folder / "config.json").write_text("{}")
    return folder


def vllm_config(shape: Shape, rank: int, layer_names: list[str]) -> Any:
    """vLLM's configuration, as far as connectors read it."""
    settings = {"model_type": "toy", "num_hidden_layers": shape.layers, "num_key_value_heads": shape.ranks, "head_dim": CHANNELS}
    hf_config = SimpleNamespace(to_dict=lambda: dict(settings), **settings)
    folder = str(model_folder(shape.model))
    transfer = SimpleNamespace(
        kv_connector="under test",
        kv_role="kv_both",
        is_kv_producer=True,
        is_kv_consumer=True,
        engine_id="conformance",
        kv_connector_extra_config=dict(shape.extra),
        kv_load_failure_policy="recompute",
        get_from_extra_config=lambda key, default: shape.extra.get(key, default),
    )
    return SimpleNamespace(
        kv_transfer_config=transfer,
        cache_config=SimpleNamespace(
            block_size=shape.block_tokens,
            cache_dtype="auto",
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256",
            num_gpu_blocks=shape.blocks,
        ),
        model_config=SimpleNamespace(
            model=folder,
            revision=None,
            dtype="torch.uint8",
            quantization=None,
            architectures=["Toy"],
            hf_config=hf_config,
            hf_text_config=hf_config,
            max_model_len=1 << 16,
            get_num_layers=lambda parallel: shape.layers,
        ),
        parallel_config=SimpleNamespace(
            rank=rank,
            world_size=shape.ranks,
            tensor_parallel_size=shape.ranks,
            pipeline_parallel_size=1,
            data_parallel_rank=0,
            data_parallel_size=1,
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=shape.step_tokens, disable_hybrid_kv_cache_manager=False),
        compilation_config=SimpleNamespace(static_forward_context={name: SimpleNamespace(attn_backend=Backend) for name in layer_names}),
        speculative_config=None,
        lora_config=None,
        device_config=SimpleNamespace(device="cpu"),
        additional_config={},
    )


def kv_cache_config(shape: Shape, layer_names: list[str]) -> Any:
    """vLLM's `KVCacheConfig`: one group of full attention."""
    spec = FullAttentionSpec(block_size=shape.block_tokens, num_kv_heads=1, head_size=CHANNELS, dtype="torch.uint8", sliding_window=None)
    group = SimpleNamespace(layer_names=layer_names, kv_cache_spec=spec)
    return SimpleNamespace(num_blocks=shape.blocks, kv_cache_tensors=[], kv_cache_groups=[group], hash_block_size=shape.block_tokens)
