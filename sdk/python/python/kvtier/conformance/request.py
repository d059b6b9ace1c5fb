"""A request as connectors see it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .content import chains


@dataclass
class Request:
    """The attributes of vLLM's `Request` that connectors read, and the engine's own state."""

    request_id: str
    prompt_token_ids: list[int]
    block_tokens: int
    max_tokens: int = 2
    cache_salt: str | None = None
    cancel_at: int | None = None
    """The engine's step before which the request is cancelled."""
    lora_request: Any = None
    mm_features: list[Any] = field(default_factory=list)
    prompt_embeds: Any = None
    sampling_params: Any = None
    pooling_params: Any = None
    kv_transfer_params: Any = None
    skip_reading_prefix_cache: bool = False
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self.all_token_ids = list(self.prompt_token_ids)
        self.num_computed_tokens = 0
        self.table: list[int] = []
        self.state = "waiting"
        """waiting, remote (an asynchronous load), ready (it has ended), running, finished"""
        self.was_scheduled = False
        self.remote: tuple[int, int] = (0, 0)
        self.loaded = 0
        self._hash()

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    def append(self, token: int) -> None:
        """A token was sampled."""
        self.all_token_ids.append(token)
        self._hash()

    def _hash(self) -> None:
        self.chains = chains(self.all_token_ids)
        self.block_hashes = block_hashes(self.all_token_ids, self.block_tokens, self.cache_salt)


def block_hashes(tokens: Sequence[int], size: int, salt: str | None) -> list[bytes]:
    """Chained hashes of full blocks; the salt is in the first and so in all."""
    found, parent = [], b"seed"
    for at in range(0, len(tokens) - size + 1, size):
        extra = salt if at == 0 else None
        parent = hashlib.sha256(repr((parent, tuple(tokens[at : at + size]), extra)).encode()).digest()
        found.append(parent)
    return found
