"""A worker's KV memory, as tensors: torch's where torch is installed, else stand-ins with what a connector reads of a tensor."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import random
from collections.abc import Iterable
from typing import Any

from .content import CHANNELS, block_bytes


class StandIn:
    """A contiguous byte tensor over somebody's memory."""

    def __init__(self, buffer: bytearray, shape: tuple[int, ...]) -> None:
        self._buffer = buffer
        self.shape = shape
        self.dtype = "torch.uint8"
        self.device = "cpu"

    def data_ptr(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))

    def stride(self) -> tuple[int, ...]:
        strides, step = [], 1
        for length in reversed(self.shape):
            strides.append(step)
            step *= length
        return tuple(reversed(strides))

    def element_size(self) -> int:
        return 1

    def numel(self) -> int:
        return len(self._buffer)

    def is_contiguous(self) -> bool:
        return True


class Memory:
    """Layers of blocks `[blocks, 1, block_tokens, 2 * CHANNELS]`, one byte an element."""

    def __init__(self, layers: int, blocks: int, block_tokens: int, seed: int) -> None:
        self.block_tokens = block_tokens
        self.block_bytes = block_bytes(block_tokens)
        self.blocks = blocks
        filler = random.Random(seed)
        self.layers = [bytearray(filler.randbytes(blocks * self.block_bytes)) for _ in range(layers)]
        self._seen = [bytes(layer) for layer in self.layers]

    def names(self) -> list[str]:
        """The layers' names."""
        return [f"model.layers.{number}.self_attn.attn" for number in range(len(self.layers))]

    def tensors(self) -> dict[str, Any]:
        """What a worker registers."""
        shape = (self.blocks, 1, self.block_tokens, 2 * CHANNELS)
        return {name: tensor(layer, shape) for name, layer in zip(self.names(), self.layers)}

    def block(self, layer: int, block: int) -> bytes:
        """A block's bytes in a layer."""
        return bytes(self.layers[layer][block * self.block_bytes : (block + 1) * self.block_bytes])

    def write(self, layer: int, block: int, data: bytes) -> None:
        """The engine's own write."""
        at = slice(block * self.block_bytes, (block + 1) * self.block_bytes)
        self.layers[layer][at] = data
        kept = bytearray(self._seen[layer])
        kept[at] = data
        self._seen[layer] = bytes(kept)

    def changed(self) -> set[int]:
        """Blocks that somebody else wrote since the last call."""
        found: set[int] = set()
        for number, layer in enumerate(self.layers):
            now, before = bytes(layer), self._seen[number]
            if now != before:
                size = self.block_bytes
                found |= {at // size for at in range(0, len(now), size) if now[at : at + size] != before[at : at + size]}
                self._seen[number] = now
        return found


def tensor(buffer: bytearray, shape: Iterable[int]) -> Any:
    """A tensor over a buffer."""
    if importlib.util.find_spec("torch") is None:
        return StandIn(buffer, tuple(shape))
    torch = importlib.import_module("torch")
    return torch.frombuffer(buffer, dtype=torch.uint8).view(*shape)
