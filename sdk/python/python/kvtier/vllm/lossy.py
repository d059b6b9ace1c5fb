"""Blocks stored in a lossy form: what an operator states about where keys and values are in them, checked against what the engine does.

A form that quantises has to know which bytes of a block are which element, and a wrong answer shows as nothing but worse text. So the operator states it,
and before anything is stored it is held against the engine's own writer: values that tell where they are from go through it into a block that nobody
uses yet, and must be found where the statement has them. Nothing is taken from what is found there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .layout import Layout

ELEMENT_BYTES = 2
"""Lossy forms are made from bf16 alone."""
BASE = 200
"""Positions are written in digits below this: whole numbers that bf16 has exactly."""
SIDES = ("keys", "values")


@dataclass(frozen=True)
class Strides:
    """The element of a head, token and channel is number `first + head * heads + token * tokens + channel * channels` of a block's layer."""

    first: int
    heads: int
    tokens: int
    channels: int


@dataclass(frozen=True)
class Lossy:
    """What is stated."""

    form: str
    keys: Strides
    values: Strides


def parse(form: str, layout: Mapping[str, Any]) -> Lossy:
    """A statement from the settings. Errors: `ValueError` for what is none."""
    if sorted(layout) != sorted(SIDES):
        raise ValueError(f"kvtier.layout states {' and '.join(SIDES)}, not {', '.join(layout) or 'nothing'}")
    return Lossy(form, *(strides(side, layout[side]) for side in SIDES))


def strides(side: str, stated: Any) -> Strides:
    names = Strides.__annotations__
    if not isinstance(stated, Mapping) or sorted(stated) != sorted(names):
        raise ValueError(f"kvtier.layout.{side} states {', '.join(names)}, not {stated!r}")
    for name, value in stated.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise ValueError(f"kvtier.layout.{side}.{name} is a number of elements, not {value!r}")
    return Strides(**stated)


def check(lossy: Lossy, memory: Layout, written: Callable[[list[int], list[int]], Sequence[float]]) -> None:
    """Raises `ValueError` when the engine does not keep its blocks as stated.

    `written(keys, values)` has the engine's own kernel write a block, with these as its keys and values by token, head and channel, and returns the block's
    elements as they lie in memory.
    """
    if memory.dtype != "bfloat16":
        raise ValueError(f"{lossy.form} is made from bfloat16, and the engine's blocks are {memory.dtype}")
    elements = memory.block_bytes // ELEMENT_BYTES
    expected = 2 * memory.kv_heads * memory.block_tokens * memory.head_dim
    if elements != expected:
        raise ValueError(f"a layer of a block has {elements} elements, but its heads, tokens and channels make {expected}")
    places = [*places_of(lossy.keys, memory), *places_of(lossy.values, memory)]
    if sorted(places) != list(range(elements)):
        raise ValueError("kvtier.layout has two elements in one place, or one outside of the block")
    for digit in range(digits(elements)):
        labels = [1 + number // BASE**digit % BASE for number in range(elements)]
        found = written(labels[: elements // 2], labels[elements // 2 :])
        for number, (place, label) in enumerate(zip(places, labels, strict=True)):
            if found[place] != label:
                raise ValueError(f"the engine does not keep {name_of(number, memory)} at element {place} of a block, where kvtier.layout has it")


def places_of(side: Strides, memory: Layout) -> list[int]:
    """The place of each element, by token, head and channel."""
    return [
        side.first + head * side.heads + token * side.tokens + channel * side.channels
        for token in range(memory.block_tokens)
        for head in range(memory.kv_heads)
        for channel in range(memory.head_dim)
    ]


def name_of(number: int, memory: Layout) -> str:
    number, channel = divmod(number, memory.head_dim)
    number, head = divmod(number, memory.kv_heads)
    side, token = divmod(number, memory.block_tokens)
    return f"the {SIDES[side]} of token {token}, head {head}, channel {channel}"


def digits(elements: int) -> int:
    """How many are needed to tell so many elements apart."""
    count = 1
    while BASE**count < elements:
        count += 1
    return count
