"""The ranks of a simulated engine: memory, forward passes, and a watch over who writes what."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from . import content, interface, shape
from .findings import Findings
from .memory import Memory
from .request import Request


class Rank:
    """A worker process' part."""

    def __init__(self, of: shape.Shape, rank: int, make: type, registry: content.Registry, findings: Findings) -> None:
        self.of, self.rank, self.registry, self.findings = of, rank, registry, findings
        self.memory = Memory(of.layers, of.blocks, of.block_tokens, rank)
        names = self.memory.names()
        self.tensors = self.memory.tensors()
        role = interface.KVConnectorRole.WORKER
        self.connector = make(shape.vllm_config(of, rank, names), role, kv_cache_config=shape.kv_cache_config(of, names))
        self.connector.register_kv_caches(self.tensors)
        self._noise = random.Random(rank)

    def owner(self, request: Request, layer: int) -> content.Owner:
        """Whose bytes a request's blocks are here."""
        return content.Owner(self.of.model, self.rank, layer, request.cache_salt)

    def wanted(self, request: Request, layer: int, block: int, tokens: int) -> bytes:
        """A block of the request as it must be when so many of the request's tokens are computed; what lies beyond is taken as it is."""
        size = self.of.block_tokens
        whole = bytearray(self.memory.block(layer, request.table[block]))
        for at in range(min(size, tokens - block * size)):
            content.put(whole, at, content.token_kv(self.owner(request, layer), request.chains[block * size + at]), size)
        return bytes(whole)

    def wrong(self, request: Request, tokens: int, layers: Iterable[int], first: int = 0) -> list[tuple[int, str]]:
        """Blocks, from number `first` on, that do not hold the KV of the request's first tokens, each with the name of what went wrong."""
        size = self.of.block_tokens
        found: list[tuple[int, str]] = []
        for block in range(first, -(-tokens // size)):
            for layer in layers:
                seen = self.memory.block(layer, request.table[block])
                if seen == self.wanted(request, layer, block, tokens):
                    continue
                chains = request.chains[block * size : min(tokens, (block + 1) * size)]
                found.append((request.table[block], self.registry.explain(seen, self.owner(request, layer), chains, size)))
                break
        return found

    def compute(self, request: Request, layer: int, begin: int, end: int, is_sound: bool) -> None:
        """Writes the KV of tokens; noise when what they attend to was wrong."""
        size = self.of.block_tokens
        for block in range(begin // size, -(-end // size)):
            data = bytearray(self.memory.block(layer, request.table[block]))
            for at in range(max(begin - block * size, 0), min(end - block * size, size)):
                chain = request.chains[block * size + at]
                right = self.registry.of(self.owner(request, layer), chain) if is_sound else b""
                content.put(data, at, right or self._noise.randbytes(2 * content.CHANNELS), size)
            self.memory.write(layer, request.table[block], bytes(data))

    def call(self, name: str, *arguments: Any, judge: Callable[[set[int], str], None], **named: Any) -> Any:
        """Calls the connector, and looks what was written meanwhile. A call that raises is a finding, not the end."""
        try:
            answer = getattr(self.connector, name)(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises
            self.findings.add("raises", f"{name}: {type(error).__name__}: {error}")
            answer = None
        judge(self.memory.changed(), name)
        return answer
