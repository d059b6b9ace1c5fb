"""What the KV of a token must be, so that wrong KV is noticed, and whose it is instead.

A token's KV in a layer is a digest of everything that it depends on: the model, the rank, the layer, the salt, and all tokens up to it. A block holds
it as vLLM's CPU backend does: an area of keys, channel by channel, then an area of values, token by token. Cutting such a block by tokens cuts nothing meaningful.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

CHANNELS = 8
"""Bytes of a token's key, and of its value, in one layer."""


def block_bytes(block_tokens: int) -> int:
    """Bytes of one layer of a block."""
    return 2 * CHANNELS * block_tokens


@dataclass(frozen=True)
class Owner:
    """What a block's bytes depend on, tokens aside."""

    model: str
    rank: int
    layer: int
    salt: str | None


@lru_cache(maxsize=1 << 16)
def token_kv(owner: Owner, chain: bytes) -> bytes:
    """Key and value of the token at the end of a chain of tokens."""
    return hashlib.blake2b(repr(owner).encode() + chain, digest_size=2 * CHANNELS).digest()


def chains(tokens: Sequence[int]) -> list[bytes]:
    """A digest of the first 1, 2, ... tokens."""
    found, digest = [], b""
    for token in tokens:
        digest = hashlib.blake2b(digest + token.to_bytes(4, "little"), digest_size=16).digest()
        found.append(digest)
    return found


def put(block: bytearray, at: int, kv: bytes, block_tokens: int) -> None:
    """Writes a token into a block."""
    for channel in range(CHANNELS):
        block[channel * block_tokens + at] = kv[channel]
    values = CHANNELS * block_tokens
    block[values + at * CHANNELS : values + (at + 1) * CHANNELS] = kv[CHANNELS:]


def get(block: bytes, at: int, block_tokens: int) -> bytes:
    """Reads a token out of a block."""
    values = CHANNELS * block_tokens
    keys = bytes(block[channel * block_tokens + at] for channel in range(CHANNELS))
    return keys + bytes(block[values + at * CHANNELS : values + (at + 1) * CHANNELS])


@dataclass
class Registry:
    """Every token's KV that was ever right anywhere, and what it belongs to."""

    known: dict[bytes, tuple[Owner, bytes]] = field(default_factory=dict)

    def of(self, owner: Owner, chain: bytes) -> bytes:
        """What a token's KV is; remembered."""
        kv = token_kv(owner, chain)
        self.known[kv] = (owner, chain)
        return kv

    def explain(self, found: bytes, owner: Owner, chain_of: Sequence[bytes], block_tokens: int) -> str:
        """Why a block's bytes are not those of these tokens: the name of the mistake."""
        wanted = [token_kv(owner, chain) for chain in chain_of]
        seen = [get(found, at, block_tokens) for at in range(len(wanted))]
        for kv in seen:
            if kv in self.known and kv not in wanted:
                other, chain = self.known[kv]
                if other.rank != owner.rank:
                    return "wrong-rank"
                if other.model != owner.model:
                    return "wrong-model"
                if other.salt != owner.salt:
                    return "salt-dropped"
                if other.layer != owner.layer:
                    return "wrong-layer"
                return "wrong-block"
        return "token-sliced" if is_sliced(found, wanted, block_tokens) else "garbage"


def is_sliced(found: bytes, wanted: Sequence[bytes], block_tokens: int) -> bool:
    """Whether some first or last bytes are right, a whole number of tokens' worth of them, and the others are not: a block that was cut as if its tokens
    lay one after the other."""
    whole = bytearray(found)
    for at, kv in enumerate(wanted):
        put(whole, at, kv, block_tokens)
    size = 2 * CHANNELS
    from_start = next((at for at in range(len(whole)) if whole[at] != found[at]), len(whole))
    from_end = next((at for at in range(len(whole)) if whole[-1 - at] != found[-1 - at]), len(whole))
    return any(size <= run < len(whole) and run // size * size + 2 >= run for run in (from_start, from_end))
