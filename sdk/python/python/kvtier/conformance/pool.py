"""Blocks of an engine, as vLLM has them: a queue of free ones that keep their hash until they are used again, and a local prefix cache over it."""

from __future__ import annotations

from collections.abc import Sequence


class Pool:
    """Block 0 is vLLM's null block and never given out."""

    def __init__(self, blocks: int) -> None:
        self.free = list(range(1, blocks))
        self.users: dict[int, int] = {}
        self.hash_of: dict[int, bytes] = {}
        self.block_of: dict[bytes, int] = {}

    def hit(self, hashes: Sequence[bytes], most: int) -> list[int]:
        """The longest cached prefix, of `most` blocks at most."""
        found: list[int] = []
        for key in hashes[:most]:
            block = self.block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def take(self, block: int) -> None:
        """One more request uses a block."""
        if block not in self.users:
            self.free.remove(block)
        self.users[block] = self.users.get(block, 0) + 1

    def new(self, count: int) -> list[int] | None:
        """Blocks for one request, or `None` when there are not so many; the longest unused come first."""
        if count > len(self.free):
            return None
        taken = self.free[:count]
        for block in taken:
            self.take(block)
            self.forget(block)
        return taken

    def cache(self, block: int, key: bytes) -> None:
        """A block can be found from now on."""
        if key not in self.block_of:
            self.block_of[key] = block
            self.hash_of[block] = key

    def forget(self, block: int) -> None:
        """A block cannot be found any more."""
        key = self.hash_of.pop(block, None)
        if key is not None:
            del self.block_of[key]

    def give_back(self, blocks: Sequence[int]) -> None:
        """A request lets go of its blocks; the last ones are used again first."""
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                del self.users[block]
                self.free.append(block)

    def reset(self) -> None:
        """The local prefix cache is empty."""
        self.hash_of.clear()
        self.block_of.clear()
