"""The scheduler's side: what a request may take from the store, where it goes, and which blocks are offered to it.

Imports no vLLM: requests and scheduler outputs are read by their attributes, so that the conformance kit can drive it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .orders import Load, Orders, Outcome, Save
from .plan import Chunks, Match, Span, load_rows, save_rows, targets, wanted


class Finds(Protocol):
    """One rank's blocks in the store."""

    def find(self, span: Span, request: str) -> list[str]:
        """The tier of each block that is there, from the first one on. Never raises."""


@dataclass
class Running:
    """A request that has blocks."""

    request: Any
    table: list[int] = field(default_factory=list)
    saved: int = 0
    """Stored blocks that the store has, or that were offered to it."""
    computed: int = 0
    """Tokens that are computed when the steps built so far have been done."""


class Scheduler:
    """Plans loads and saves. One instance in the scheduler's process."""

    def __init__(self, chunks: Chunks, *, load_async: bool = False, reads: bool = True, writes: bool = True, is_lossy: bool = False) -> None:
        """`is_lossy`: a stored block of which a part was there before is not offered: that part may be decoded, and nothing is encoded twice."""
        self.chunks = chunks
        self.load_async = load_async
        self.reads = reads
        self.writes = writes
        self.is_lossy = is_lossy
        self.ranks: list[Finds] = []
        self._matches: dict[str, Match] = {}
        """The last match of each request, until it ends."""
        self._asked: set[str] = set()
        """Requests that were matched and have not been allocated since."""
        self._running: dict[str, Running] = {}
        self._loads: list[Load] = []
        self._serial = 0
        self._step = 0
        self._unconfirmed: dict[int, tuple[int, set[int]]] = {}
        """Sync loads whose step has not come back: serial -> (step, blocks that they write)."""
        self._spoilt: set[int] = set()
        """Engine blocks that hold garbage: loads that failed, and what was computed from them, until they are computed again."""

    def attach(self, ranks: Sequence[Finds]) -> None:
        """The store as every rank sees it. Until then nothing is found."""
        self.ranks = list(ranks)

    def matched(self, request: Any, local_tokens: int) -> tuple[int, bool]:
        """Tokens beyond the local hit that every rank can load, and whether that happens between steps."""
        name = request.request_id
        if not self.ranks or not is_cacheable(request):
            return 0, False
        span = wanted(self.chunks, hashes_of(request), request.num_tokens, local_tokens) if self.reads else None
        tiers = self._find(span, name) if span else ()
        match = Match(local_tokens, local_tokens // self.chunks.stored_tokens, tiers)
        self._matches[name] = match
        self._asked.add(name)
        tokens = match.tokens(self.chunks)
        return tokens, self.load_async and tokens > 0

    def sources(self, request: Any, tokens: int) -> dict[str, int]:
        """The first `tokens` tokens of the request's last match, by tier."""
        match = self._matches.get(request.request_id)
        return match.by_tier(self.chunks, tokens) if match else {}

    def allocated(self, request: Any, table: Sequence[int], tokens: int) -> None:
        """The request got its blocks; `tokens` of them are to be loaded. Called a second time, with 0, after an async load."""
        if not is_cacheable(request):
            return
        name = request.request_id
        match = self._matches.get(name)
        if match is None or name not in self._asked:
            if name in self._running:
                self._running[name].table = list(table)
            return
        self._asked.discard(name)
        done = match.local_tokens + tokens
        self._running[name] = Running(request, list(table), self._offered(done), done)
        if tokens:
            self._order(request, match, table, tokens)

    def build(self, output: Any) -> Orders:
        """The orders of a step."""
        self._step += 1
        loads, self._loads = self._loads, []
        for load in loads:
            self._spoilt -= targets(load.rows)
            if not load.is_async:
                self._unconfirmed[load.serial] = (self._step, targets(load.rows))
        saves = []
        for name, computed in self._scheduled(output):
            save = self._save(name, computed, output.num_scheduled_tokens[name])
            if save:
                saves.append(save)
        return Orders(self._step, loads, saves, min(self._unconfirmed, default=self._serial + 1))

    def confirmed(self, outcome: Outcome | None, failed: Iterable[int]) -> None:
        """All workers have done that step; the engine knows the blocks that they failed to load before it plans the next one."""
        self._spoilt.update(failed)
        if outcome is not None:
            self._unconfirmed = {serial: of for serial, of in self._unconfirmed.items() if of[0] > outcome.step}

    def finished(self, name: str) -> None:
        """The request has ended. What it was about to load is not loaded any more, unless a step was built with it."""
        self._matches.pop(name, None)
        self._asked.discard(name)
        self._running.pop(name, None)
        self._loads = [load for load in self._loads if load.request != name or load.is_async]

    def _find(self, span: Span, name: str) -> tuple[str, ...]:
        found = [rank.find(span, name) for rank in self.ranks]
        common = min(len(tiers) for tiers in found)
        return tuple(slowest(tiers[block] for tiers in found) for block in range(common))

    def _order(self, request: Any, match: Match, table: Sequence[int], tokens: int) -> None:
        first, rows = load_rows(self.chunks, table, match.local_tokens, tokens)
        span = self.chunks.span(hashes_of(request), first, first + len(rows))
        if len(span.keys) != len(rows):
            raise RuntimeError(f"request {request.request_id} has {len(span.keys)} hashes for {len(rows)} blocks to load")
        self._serial += 1
        self._loads.append(Load(self._serial, request.request_id, span, rows, self.load_async))

    def _scheduled(self, output: Any) -> Iterable[tuple[str, int]]:
        """Requests of this step with the tokens computed before it; brings block tables up to date."""
        for new in output.scheduled_new_reqs:
            if new.req_id in self._running:
                self._running[new.req_id].table = list(new.block_ids[0])
                yield new.req_id, new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for name, blocks, computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens):
            running = self._running.get(name)
            if running is None:
                continue
            if blocks:
                kept = [] if name in cached.resumed_req_ids else running.table
                running.table = kept + list(blocks[0])
            yield name, computed

    def _save(self, name: str, computed: int, scheduled: int) -> Save | None:
        """What the request fills in this step. A step that came out wrong shows as fewer computed tokens than before: from there on, again."""
        running = self._running[name]
        if computed < running.computed:
            running.saved = min(running.saved, self._offered(computed))
        running.computed = computed + scheduled
        if self._spoilt and not self._is_clean(running, computed):
            return None
        hashes = hashes_of(running.request)
        end = min(self.chunks.whole(running.computed), len(hashes) // self.chunks.factor)
        if end <= running.saved or not self.writes:
            return None
        used = set(running.table[: end * self.chunks.factor]) if self._unconfirmed else set()
        after = tuple(serial for serial, (_, blocks) in self._unconfirmed.items() if blocks & used)
        if after and len(self.ranks) > 1:
            # A rank knows of its own failed loads only, but each one's blocks are computed from all ranks' results: wait for the step to come back.
            return None
        first, running.saved = running.saved, end
        return Save(name, self.chunks.span(hashes, first, end), save_rows(self.chunks, running.table, first, end), after)

    def _offered(self, tokens: int) -> int:
        """Stored blocks that are not offered when so many tokens were there before."""
        return -(-tokens // self.chunks.stored_tokens) if self.is_lossy else self.chunks.whole(tokens)

    def _is_clean(self, running: Running, computed: int) -> bool:
        """Whether what this step computes comes from good blocks alone. The blocks that it fills are as good as those before them."""
        size = self.chunks.block_tokens
        before, filled = computed // size, -(-running.computed // size)
        clean = self._spoilt.isdisjoint(running.table[:before])
        if clean:
            self._spoilt.difference_update(running.table[before:filled])
        else:
            self._spoilt.update(running.table[before:filled])
        return clean


def hashes_of(request: Any) -> Sequence[bytes]:
    """Hashes of the request's full blocks that may be published."""
    hashes: Sequence[bytes] = request.block_hashes
    publishable = getattr(request, "num_publishable_block_hashes", None)
    return hashes if publishable is None else hashes[:publishable]


def is_cacheable(request: Any) -> bool:
    """Whether block hashes say all that the request's KV depends on, and it wants prefixes at all.

    An adapter enters the hash by its name only; the same name may mean other weights in another process.
    """
    return (
        getattr(request, "lora_request", None) is None
        and getattr(request, "prompt_embeds", None) is None
        and not getattr(request, "skip_reading_prefix_cache", False)
    )


def slowest(tiers: Iterable[str]) -> str:
    """The tier that a block comes from when ranks find it in several."""
    order = ("device", "host", "disk")
    return max(tiers, key=lambda tier: order.index(tier) if tier in order else len(order))
