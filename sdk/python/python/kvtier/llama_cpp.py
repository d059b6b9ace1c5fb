"""llama-cpp-python's cache of sessions, kept in kvtier: a prompt's beginning that any process has computed is not computed again.

    llama = Llama(model_path, n_ctx=8192)
    llama.set_cache(KvtierCache(llama))

llama.cpp saves the state of a whole context, not blocks of it. Such a state is stored in pieces of 1 MiB; beside it, under the hash of every 256 tokens
of its text, stands a page that says which state has that beginning. A prompt is answered by the state that the deepest page names, and llama-cpp-python goes on from
where the two texts part.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy
from llama_cpp.llama import LlamaState
from llama_cpp.llama_cache import BaseLlamaCache

import kvtier

from .chain import block_keys
from .weights import Known, cache_path

PIECE_BYTES = 1 << 20
PAGE_BYTES = 4096
MARK_TOKENS = 256


class KvtierCache(BaseLlamaCache):  # type: ignore[misc]
    """States of one model in one daemon. Whatever goes wrong with the daemon is a state that is not there."""

    def __init__(
        self,
        llama: Any,
        *,
        socket: str | os.PathLike[str] | None = None,
        salt: str | None = None,
        model_id: str | None = None,
        capacity_bytes: int = 2 << 30,
        deadline_ms: int = 10_000,
    ) -> None:
        """`capacity_bytes`: larger states are not stored. What the daemon keeps in all is the daemon's matter. Errors: `ValueError` with `logits_all`, whose
        logits of earlier tokens are not stored."""
        super().__init__(capacity_bytes)
        if getattr(llama, "_logits_all", False):
            raise ValueError("logits_all wants the logits of every token; states are stored without them")
        self._rows, self._vocabulary = llama.scores.shape
        weights = identity(llama, model_id)
        self._pages = self._open(weights, "pages", PAGE_BYTES, socket, salt, deadline_ms)
        self._pieces = self._open(weights, "pieces", PIECE_BYTES, socket, salt, deadline_ms)
        self._stored_bytes = 0

    @property
    def cache_size(self) -> int:
        """Bytes of states that this process has stored."""
        return self._stored_bytes

    def __contains__(self, key: Sequence[int]) -> bool:
        try:
            return len(self._pages.lookup(marks(key))) > 0
        except kvtier.Error:
            return False

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """The stored state with the longest common beginning, in steps of 256 tokens. Errors: `KeyError` when there is none."""
        try:
            page = self._page(list(key))
            return self._state(page)
        except kvtier.Error as error:
            raise KeyError("no state") from error

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        keys = marks(list(key)[: value.n_tokens])
        if not keys or value.llama_state_size > self.capacity_bytes:
            return
        tokens = numpy.asarray(value.input_ids[: value.n_tokens], dtype="<i4").tobytes()
        blob = bytearray(tokens + value.llama_state)
        digest = hashlib.sha256(blob).hexdigest()
        size, count = len(blob), -(-len(blob) // PIECE_BYTES)
        blob.extend(bytes(count * PIECE_BYTES - size))
        page = {"n_tokens": value.n_tokens, "bytes": size, "sha256": digest, "seed": value.seed, "context": len(value.input_ids)}
        try:
            # Pages last: one that can be found names a state that is there.
            taken = self._pieces.store(piece_keys(digest, count), slabs(blob, PIECE_BYTES), rows(count))
            if all(answer in ("inserted", "present") for answer in taken):
                self._stored_bytes += PIECE_BYTES * taken.count("inserted")
                text = json.dumps(page).encode().ljust(PAGE_BYTES, b" ")
                self._pages.store(keys, slabs(bytearray(text * len(keys)), PAGE_BYTES), rows(len(keys)))
        except kvtier.Error:
            return

    def close(self) -> None:
        """Ends the connections."""
        self._pages.close()
        self._pieces.close()

    def _page(self, tokens: list[int]) -> dict[str, Any]:
        keys = marks(tokens)
        depth = len(self._pages.lookup(keys)) if keys else 0
        if not depth:
            raise KeyError("no state")
        page = bytearray(PAGE_BYTES)
        parent = keys[depth - 2] if depth > 1 else None
        if not self._pages.load([keys[depth - 1]], slabs(page, PAGE_BYTES), [[0]], parent=parent, depth=depth - 1).tiers:
            raise KeyError("no state")
        return dict(json.loads(page))

    def _state(self, page: dict[str, Any]) -> LlamaState:
        count = -(-page["bytes"] // PIECE_BYTES)
        blob = bytearray(count * PIECE_BYTES)
        if len(self._pieces.load(piece_keys(page["sha256"], count), slabs(blob, PIECE_BYTES), rows(count)).tiers) < count:
            raise KeyError("no state")
        split, end = 4 * page["n_tokens"], page["bytes"]
        input_ids = numpy.zeros(page["context"], dtype=numpy.intc)
        input_ids[: page["n_tokens"]] = numpy.frombuffer(blob[:split], dtype="<i4")
        # Only the last token's logits are ever read, and that one is always evaluated again.
        scores = numpy.zeros((min(page["n_tokens"], self._rows), self._vocabulary), dtype=numpy.single)
        return LlamaState(input_ids, scores, page["n_tokens"], bytes(blob[split:end]), end - split, page["seed"])

    def _open(self, weights: bytes, what: str, size: int, socket: Any, salt: str | None, deadline_ms: int) -> kvtier.Client:
        manifest = kvtier.Manifest(
            weights=weights, architecture="llama.cpp", dtype=what, block_tokens=MARK_TOKENS, layers=1, kv_heads=1, head_dim=8, numerics=version()
        )
        form = kvtier.Opaque(layer_bytes=size, layout=f"llama.cpp context state, {what}")
        return kvtier.Client(socket, manifest=manifest, form=form, salt=salt, name="llama-cpp-python", deadline_ms=deadline_ms)


def version() -> str:
    """Which llama.cpp wrote a state."""
    return f"llama-cpp-python={llama_cpp.__version__}"


def marks(tokens: Sequence[int]) -> list[bytes]:
    """Keys of a text's pages."""
    return block_keys(tokens, MARK_TOKENS)


def piece_keys(digest: str, count: int) -> list[bytes]:
    """Keys of a state's pieces."""
    return [hashlib.sha256(f"{digest}:{number}".encode()).digest() for number in range(count)]


def slabs(buffer: bytearray, size: int) -> kvtier.Slabs:
    return kvtier.Slabs([buffer], block_bytes=size)


def rows(count: int) -> list[list[int]]:
    return [[number] for number in range(count)]


def identity(llama: Any, model_id: str | None) -> bytes:
    """What the model computes, and how its context lays KV out."""
    if model_id is None:
        known = Known(cache_path())
        model_id = known.sha256(Path(llama.model_path)).hex()
        known.keep()
    context = llama.context_params
    settings = {name: getattr(context, name, None) for name in ("n_ctx", "type_k", "type_v", "flash_attn_type", "offload_kqv", "rope_freq_base", "rope_freq_scale")}
    return hashlib.sha256(repr((model_id, sorted((name, str(value)) for name, value in settings.items()))).encode()).digest()
