"""Hashes of token blocks, for engines that bring none of their own."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

SEED = b"kvtier.python.chain.v1"


def block_keys(tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """A key for each full block: SHA-256 over the key before it and the block's tokens as little-endian 32-bit numbers."""
    keys, parent = [], hashlib.sha256(SEED + struct.pack("<I", block_tokens)).digest()
    for at in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = tokens[at : at + block_tokens]
        parent = hashlib.sha256(parent + struct.pack(f"<{len(block)}I", *block)).digest()
        keys.append(parent)
    return keys
