"""Which stored blocks to ask for, to load and to save. Arithmetic only: no vLLM, no store, no memory.

Two sizes of block meet here. An **engine block** is vLLM's: `block_tokens` tokens, an entry of a request's block table, with a hash of its own
once it is full. A **stored block** is `factor` engine blocks in a row, kept under the hash of the last one. Stored block `i` of a request is its
engine blocks `i * factor` to `(i + 1) * factor - 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SKIP = -1
"""In a row of a load: this part of the stored block is not written anywhere."""


@dataclass(frozen=True)
class Span:
    """Stored blocks in a row: `keys[0]` is number `first` of its request and stands after the block under `parent`."""

    first: int
    keys: tuple[bytes, ...]
    parent: bytes | None


@dataclass(frozen=True)
class Chunks:
    """The two sizes of block."""

    block_tokens: int
    factor: int = 1

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or self.factor < 1:
            raise ValueError(f"blocks of {self.block_tokens} tokens, {self.factor} to a stored block: both must be at least 1")

    @property
    def stored_tokens(self) -> int:
        """Tokens of a stored block."""
        return self.block_tokens * self.factor

    def usable(self, tokens: int) -> int:
        """Stored blocks of a request of `tokens` tokens that may come from the store: its last token is always computed, for its logits."""
        return max(0, (tokens - 1) // self.stored_tokens)

    def whole(self, tokens: int) -> int:
        """Stored blocks that the first `tokens` tokens fill."""
        return tokens // self.stored_tokens

    def key(self, hashes: Sequence[bytes], block: int) -> bytes:
        """The key of a stored block, from the hashes of the request's engine blocks."""
        return bytes(hashes[(block + 1) * self.factor - 1])

    def span(self, hashes: Sequence[bytes], first: int, end: int) -> Span:
        """Stored blocks `first` to `end - 1`, as far as there are hashes for them."""
        end = max(first, min(end, len(hashes) // self.factor))
        parent = self.key(hashes, first - 1) if first else None
        return Span(first, tuple(self.key(hashes, block) for block in range(first, end)), parent)


@dataclass(frozen=True)
class Match:
    """What the store has for a request beyond its local hit."""

    local_tokens: int
    """The local hit at the time of asking, whole engine blocks."""
    first: int
    """The first stored block that was asked for. It straddles the local hit when that ends inside it."""
    tiers: tuple[str, ...]
    """Where each stored block that is there lies, in order."""

    def tokens(self, chunks: Chunks) -> int:
        """Tokens that the store adds to the local hit."""
        if not self.tiers:
            return 0
        return (self.first + len(self.tiers)) * chunks.stored_tokens - self.local_tokens

    def by_tier(self, chunks: Chunks, tokens: int) -> dict[str, int]:
        """The first `tokens` tokens after the local hit, by the tier that they come from."""
        found: dict[str, int] = {}
        position, end = self.local_tokens, self.local_tokens + tokens
        for number, tier in enumerate(self.tiers, self.first):
            upto = min(end, (number + 1) * chunks.stored_tokens)
            if upto > position:
                found[tier] = found.get(tier, 0) + upto - position
                position = upto
        return found


def wanted(chunks: Chunks, hashes: Sequence[bytes], tokens: int, local_tokens: int) -> Span | None:
    """What to ask the store for; `None` when it cannot add anything, or when the local hit does not end with an engine block."""
    if local_tokens % chunks.block_tokens:
        return None
    first = local_tokens // chunks.stored_tokens
    span = chunks.span(hashes, first, chunks.usable(tokens))
    return span if span.keys else None


def load_rows(chunks: Chunks, table: Sequence[int], local_tokens: int, tokens: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The stored blocks to load and where their parts go: `(first, rows)`, a row of `factor` engine blocks each.

    `table` is the request's block table. Only the blocks of the `tokens` tokens after the local hit are written: what was computed already, or
    will be computed here, is `SKIP`.
    """
    begin, rest = divmod(local_tokens, chunks.block_tokens)
    end, over = divmod(local_tokens + tokens, chunks.block_tokens)
    if rest or over or end > len(table):
        raise ValueError(f"{tokens} tokens after {local_tokens} are not whole blocks of a table of {len(table)}")
    first, last = begin // chunks.factor, -(-end // chunks.factor)
    number = range(first * chunks.factor, last * chunks.factor)
    parts = [table[block] if begin <= block < end else SKIP for block in number]
    return first, cut(parts, chunks.factor)


def save_rows(chunks: Chunks, table: Sequence[int], first: int, end: int) -> tuple[tuple[int, ...], ...]:
    """The engine blocks of stored blocks `first` to `end - 1`, a row each."""
    parts = list(table[first * chunks.factor : end * chunks.factor])
    if len(parts) != (end - first) * chunks.factor:
        raise ValueError(f"stored blocks {first} to {end - 1} are not in a table of {len(table)}")
    return cut(parts, chunks.factor)


def cut(parts: Sequence[int], factor: int) -> tuple[tuple[int, ...], ...]:
    """`parts` in rows of `factor`."""
    return tuple(tuple(parts[at : at + factor]) for at in range(0, len(parts), factor))


def targets(rows: Sequence[Sequence[int]]) -> set[int]:
    """The engine blocks that rows write."""
    return {block for row in rows for block in row if block != SKIP}
