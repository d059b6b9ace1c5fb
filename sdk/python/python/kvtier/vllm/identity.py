"""What makes one engine's blocks fit another: the namespace of a rank's blocks.

vLLM's block hashes cover tokens, images, salts and adapters; not the model, the element type, the rank, nor how a block's bytes are laid out.
All of that is here, so that a difference in any of it is another namespace, never a hit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .layout import Layout
from .lossy import Lossy
from ..weights import weights_identity

HASHES = ("sha256", "sha256_cbor")
"""Block hashes that two prompts never share; vLLM's others are quicker and not collision-resistant."""


class Unsupported(Exception):
    """This engine's blocks are not stored; the text says why."""


@dataclass(frozen=True)
class Identity:
    """One rank's blocks. Workers make it, the scheduler's side gets it from them."""

    manifest: Mapping[str, Any]
    """Arguments of `kvtier.Manifest`."""
    layer_bytes: int
    """Bytes of one layer of a stored block."""
    layout: str
    """The layout of a stored block, in words."""
    block_tokens: int
    """Tokens of an engine block."""
    lossy: Lossy | None = None
    """What was stated, and found to hold, of blocks that are stored in a lossy form."""


def check(config: Any, kv_cache_config: Any, model_id: str | None = None) -> None:
    """Raises `Unsupported` for engines whose blocks mean more than their hashes and this identity say. `model_id`: as in `identify`."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise Unsupported(f"the model has {len(groups)} groups of layers with block tables of their own; one is supported")
    spec = groups[0].kv_cache_spec
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(spec, name, None):
            raise Unsupported(f"the model's layers do not attend to all positions ({name})")
    if type(spec).__name__ not in ("FullAttentionSpec", "MLAAttentionSpec"):
        raise Unsupported(f"layers of kind {type(spec).__name__} are not supported")
    for size in (config.cache_config.block_size, getattr(kv_cache_config, "hash_block_size", None)):
        if size not in (None, spec.block_size):
            raise Unsupported(f"blocks of {spec.block_size} tokens, but hashes or requests count in blocks of {size}")
    algorithm = config.cache_config.prefix_caching_hash_algo
    if algorithm not in HASHES:
        raise Unsupported(f"prefix_caching_hash_algo is {algorithm}; set it to one of {', '.join(HASHES)}")
    if not config.cache_config.enable_prefix_caching:
        raise Unsupported("enable_prefix_caching is off, so blocks have no hashes")
    if getattr(config.cache_config, "calculate_kv_scales", False):
        raise Unsupported("calculate_kv_scales makes blocks depend on what the engine saw first")
    if model_id is None and getattr(getattr(config, "load_config", None), "load_format", None) == "dummy":
        raise Unsupported("load_format is dummy: the weights are not those of the model's files")
    speculative = getattr(config, "speculative_config", None)
    if speculative is not None and speculative.method not in ("ngram", "suffix"):
        raise Unsupported(f"speculative decoding by {speculative.method} keeps KV of a second model in the same blocks")
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(f"{name} spreads a block over ranks")


def identify(
    config: Any,
    layout: Layout,
    *,
    ranks: Mapping[str, tuple[int, int]],
    factor: int,
    model_id: str | None,
    version: str,
    lossy: Lossy | None = None,
) -> Identity:
    """The identity of the blocks of a rank.

    `ranks`: `tensor` and `pipeline`, each (rank, size). `model_id`: what the operator says the weights are, instead of reading them. `version`: vLLM's.
    """
    model = config.model_config
    cache = config.cache_config
    words = [
        f"vllm={version}",
        f"hash={cache.prefix_caching_hash_algo}",
        f"attention={layout.backend}",
        f"cache_dtype={cache.cache_dtype}",
    ]
    manifest = {
        "weights": digest([weights_identity(model, model_id), settings_of(model)]),
        "architecture": ",".join(model.architectures or ["unknown"]),
        "dtype": str(layout.dtype),
        "block_tokens": layout.block_tokens * factor,
        "layers": len(layout.slabs),
        "kv_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "tensor_parallel": tuple(ranks["tensor"]),
        "pipeline": tuple(ranks["pipeline"]),
        "numerics": ";".join(words),
    }
    text = f"{layout.text};engine blocks={factor}"
    return Identity(manifest, layout.block_bytes * factor, text, layout.block_tokens, lossy)


def settings_of(model: Any) -> bytes:
    """The model's settings, overrides included, in one form for equal ones. Where they came from, and with which library, does not count."""
    settings = model.hf_config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures"):
        settings.pop(name, None)
    settings["engine.dtype"] = str(model.dtype)
    settings["engine.quantization"] = str(model.quantization)
    return json.dumps(settings, sort_keys=True, default=str).encode()


def digest(fields: Sequence[bytes]) -> bytes:
    """SHA-256 over length-prefixed fields."""
    sha = hashlib.sha256()
    for field in fields:
        sha.update(len(field).to_bytes(8, "little"))
        sha.update(field)
    return sha.digest()
