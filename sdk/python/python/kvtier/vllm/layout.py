"""Where the engine's blocks lie, and how a block is laid out: from the tensors that it registers, checked, never guessed.

A block's bytes are opaque: nothing here, and nothing in the store, looks inside them. What must hold is that an engine block of a layer is one run
of bytes, at the same distance from its neighbours in all layers. The text names everything that two engines must agree in for these bytes to mean
the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """One rank's KV memory."""

    names: tuple[str, ...]
    """A layer's name for each slab; layers that share memory appear once."""
    slabs: tuple[tuple[int, int, Any], ...] = field(repr=False)
    """(address, bytes, what keeps it alive)."""
    blocks: int
    block_tokens: int
    block_bytes: int
    """Bytes of one layer of one engine block."""
    stride: int
    """Bytes from one engine block to the next."""
    kv_heads: int
    head_dim: int
    dtype: str
    backend: str
    device: str
    text: str

    def layer_of(self, name: str) -> int | None:
        """The number of a layer's slab."""
        return self.names.index(name) if name in self.names else None

    def address(self, layer: int, block: int) -> int:
        """The first byte of an engine block's layer. Errors: `IndexError` outside of the memory."""
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of {self.blocks}")
        return self.slabs[layer][0] + block * self.stride


def read(kv_caches: Mapping[str, Any], *, blocks: int, block_tokens: int, kv_heads: int, head_dim: int, backend: str) -> Layout:
    """The layout of registered tensors. Errors: `ValueError` with the first thing that is not as it must be."""
    names: list[str] = []
    slabs: list[tuple[int, int, Any]] = []
    seen: set[int] = set()
    shape: tuple[int, int, str, str, str] | None = None
    for name, tensor in kv_caches.items():
        if not hasattr(tensor, "data_ptr"):
            raise ValueError(f"layer {name} has no single tensor")
        found = run_of(name, tensor, blocks)
        shape = shape or found
        if found != shape:
            raise ValueError(f"layer {name} is laid out otherwise than {names[0]}: {found} and {shape}")
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        names.append(name)
        slabs.append((tensor.data_ptr(), (blocks - 1) * found[1] + found[0], tensor))
    if shape is None:
        raise ValueError("no layer was registered")
    block_bytes, stride, dtype, order, device = shape
    text = f"blocks of {block_tokens} tokens, {block_bytes} bytes a layer;{order};{dtype};{backend};{device}"
    return Layout(
        tuple(names), tuple(slabs), blocks, block_tokens, block_bytes, stride, kv_heads, head_dim, dtype, backend, device, text
    )


def run_of(name: str, tensor: Any, blocks: int) -> tuple[int, int, str, str, str]:
    """Bytes of a block, distance of blocks, element type, order of dimensions inside a block, and kind of device."""
    shape, strides, size = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    axis = block_axis(shape, strides, blocks)
    if axis is None:
        raise ValueError(f"layer {name}: no dimension of {shape} counts the {blocks} blocks")
    inner = [(stride, length) for at, (stride, length) in enumerate(zip(strides, shape)) if at != axis]
    dense = 1
    for stride, length in sorted(entry for entry in inner if entry[1] != 1):
        if stride != dense:
            raise ValueError(f"layer {name}: a block of shape {shape} and strides {strides} is not one run of bytes")
        dense *= length
    if strides[axis] < dense:
        raise ValueError(f"layer {name}: blocks of {dense} elements overlap at a distance of {strides[axis]}")
    order = "x".join(f"{length}@{stride}" for stride, length in sorted(inner, reverse=True))
    return dense * size, strides[axis] * size, str(tensor.dtype).removeprefix("torch."), order, str(tensor.device).split(":")[0]


def block_axis(shape: Sequence[int], strides: Sequence[int], blocks: int) -> int | None:
    """The dimension that counts blocks: of those as long as there are blocks, the one with the largest stride."""
    fitting = [at for at, length in enumerate(shape) if length == blocks]
    if not fitting:
        return None
    axis = max(fitting, key=lambda at: strides[at])
    inner = math.prod(length for at, length in enumerate(shape) if at != axis)
    return axis if strides[axis] >= inner or blocks == 1 else None
