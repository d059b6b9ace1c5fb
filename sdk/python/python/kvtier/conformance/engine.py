"""A simulated engine: vLLM's scheduler and workers, as far as a connector can tell, with blocks whose content is checked.

A step is vLLM's: local hit, `get_num_new_matched_tokens`, allocation, `update_state_after_alloc`, `build_connector_meta`; in each worker
`bind_connector_metadata`, `start_load_kv` (after the forward pass when nothing in it waits for a load), the layers, `wait_for_save`, `get_transfer_results`,
`get_block_ids_with_load_errors`; then the scheduler takes failed blocks back, samples, ends requests, and calls `update_connector_output`.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import content, interface, shape
from .findings import Findings
from .pool import Pool
from .request import Request
from .worker import Rank

PATIENCE = 3
"""Steps that a late report of a failed load may come late and still be told from none at all."""


@dataclass
class Step:
    """What was scheduled."""

    output: interface.SchedulerOutput
    parts: list[tuple[Request, int, int]]
    """(request, tokens computed before, tokens scheduled)"""


class Blocks:
    """vLLM's `KVCacheBlocks`."""

    def __init__(self, table: Sequence[int]) -> None:
        self._table = list(table)

    def get_block_ids(self, *_: Any, **__: Any) -> tuple[list[int], ...]:
        return (list(self._table),)


class Engine:
    """One engine with its ranks."""

    def __init__(self, make: type, of: shape.Shape, registry: content.Registry, findings: Findings, name: str) -> None:
        self.of, self.findings, self.name, self.registry = of, findings, name, registry
        self.ranks = [Rank(of, rank, make, registry, findings) for rank in range(of.ranks)]
        names = self.ranks[0].memory.names()
        role = interface.KVConnectorRole.SCHEDULER
        self.connector = make(shape.vllm_config(of, 0, names), role, kv_cache_config=shape.kv_cache_config(of, names))
        said = {(0, rank.rank): rank.connector.get_handshake_metadata() for rank in self.ranks}
        said = {rank: meta for rank, meta in said.items() if meta is not None}
        if said:
            self.connector.set_xfer_handshake_metadata_pp_aware(pickle.loads(pickle.dumps(said)))
        self.pool = Pool(of.blocks)
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.step_number = 0
        self.external_tokens = 0
        self.outputs: dict[str, list[int]] = {}
        self._allowed: dict[int, str] = {}
        """Blocks that a load may write now, and for whom."""
        self._loaded_once: set[int] = set()
        """Blocks whose load has ended: nobody may write them for it any more."""
        self.kept: dict[str, list[int]] = {}
        """Blocks of ended requests that the connector still uses."""
        self._ended: set[str] = set()
        self._done: dict[str, list[set[int]]] = {"sent": {}, "received": {}}  # type: ignore[dict-item]
        self._suspects: list[tuple[int, Request, int, str]] = []
        """(step, request, block, rule): wrong blocks that nobody reported yet."""

    # What a test does.

    def add(self, request: Request) -> None:
        """A request arrives."""
        self.requests[request.request_id] = request
        self.waiting.append(request)
        self._ask("on_new_request", request)

    def is_idle(self) -> bool:
        """Nothing to do."""
        return not self.waiting and not self.running and not self.kept and not self._ended

    def reset_local(self) -> None:
        """The local prefix cache is empty: what comes next can come from the store alone."""
        self.pool.reset()

    def step(self) -> bool:
        """One step; whether any token was computed."""
        self.step_number += 1
        for request in list(self.requests.values()):
            if request.cancel_at is not None and request.cancel_at <= self.step_number:
                self._end(request)
        step = self._schedule()
        meta = self._ask("build_connector_meta", step.output)
        step.output.kv_connector_block_state = None
        step.output.kv_connector_metadata = pickle.loads(pickle.dumps(meta))
        results = self._execute(step)
        self._update(step, results)
        return bool(step.parts)

    def close(self) -> None:
        """The end; what is still suspicious is judged."""
        for rank in self.ranks:
            rank.call("shutdown", judge=self._watch)
        for _, _, block, rule in self._suspects:
            self.findings.add(rule, f"{self.name}: block {block}")
        self._suspects = []
        self._ask("shutdown")

    # Scheduling.

    def _schedule(self) -> Step:
        self._budget = self.of.step_tokens
        self._parts: list[tuple[Request, int, int]] = []
        self._news: list[interface.NewRequestData] = []
        self._cached = interface.CachedRequestData()
        self._preempted: set[str] = set()
        self._is_sync = False
        for request in list(self.running):
            if request in self.running:
                self._continue(request)
        for request in list(self.waiting):
            if self._preempted or not self._budget or not self._admit(request):
                break
        ready = [request for request in self.waiting if request.state == "ready"]
        if ready and not self._parts and not self.running:
            # All blocks are held by requests that wait for more: the last one starts again.
            self._release(ready[-1])
        scheduled = {request.request_id: count for request, _, count in self._parts}
        state = interface.KVConnectorBlockState(set(scheduled), lambda name: (list(self.requests[name].table),), {})
        ended, self._ended = self._ended, set()
        output = interface.SchedulerOutput(
            self._news,
            self._cached,
            scheduled,
            sum(scheduled.values()),
            finished_req_ids=ended,
            preempted_req_ids=self._preempted,
            has_sync_kv_loads=self._is_sync,
            kv_connector_block_state=state,
        )
        return Step(output, list(self._parts))

    def _continue(self, request: Request) -> None:
        count = min(request.num_tokens - request.num_computed_tokens, self._budget)
        if count <= 0:
            return
        before = len(request.table)
        while not self._grow(request, request.num_computed_tokens + count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return
        self._plan(request, count, request.table[before:], resumed=False)

    def _admit(self, request: Request) -> bool:
        """Whether the next request in line may be tried after this one."""
        if request.state == "remote":
            return True
        is_async, external = False, 0
        local: list[int] = []
        if request.state == "ready":
            if request.num_computed_tokens == 0:
                self._release(request)
        if request.state == "waiting":
            local = self.pool.hit(request.block_hashes, (request.num_tokens - 1) // self.of.block_tokens)
            found, is_async = self._match(request, len(local) * self.of.block_tokens)
            if found is None:
                return True
            external = found
            computed = len(local) * self.of.block_tokens + external
        else:
            computed = request.num_computed_tokens
        count = 0 if is_async else min(request.num_tokens - computed, self._budget)
        if not self._start(request, local, computed + count):
            return False
        request.num_computed_tokens = computed
        self._ask("update_state_after_alloc", request, Blocks(request.table), external)
        self._allow(request, len(local) * self.of.block_tokens, external, is_async)
        if is_async:
            request.state = "remote"
            return True
        self.waiting.remove(request)
        self.running.append(request)
        request.state = "running"
        self._plan(request, count, request.table, resumed=request.was_scheduled)
        return True

    def _match(self, request: Request, local_tokens: int) -> tuple[int | None, bool]:
        self._ask("get_num_new_matched_tokens", request, local_tokens)
        answer = self._ask("get_num_new_matched_tokens", request, local_tokens)
        tokens, is_async = answer if answer is not None else (0, False)
        if tokens is None:
            return None, False
        if is_async and not tokens:
            self.findings.add("empty-async", f"{self.name}: {request.request_id}")
            is_async = False
        if local_tokens + tokens >= request.num_tokens:
            self.findings.add("whole-prompt", f"{self.name}: {local_tokens} + {tokens} of {request.num_tokens} tokens")
            tokens, is_async = 0, False
        return tokens, is_async

    def _start(self, request: Request, local: list[int], tokens: int) -> bool:
        for block in local:
            self.pool.take(block)
        if request.state == "waiting":
            request.table = list(local)
        if self._grow(request, tokens):
            return True
        if request.state == "waiting":
            self.pool.give_back(local)
            request.table = []
        return False

    def _grow(self, request: Request, tokens: int) -> bool:
        more = -(-tokens // self.of.block_tokens) - len(request.table)
        new = self.pool.new(max(more, 0))
        if new is None:
            return False
        for block in new:
            self._loaded_once.discard(block)
        request.table += new
        return True

    def _allow(self, request: Request, local_tokens: int, external: int, is_async: bool) -> None:
        size = self.of.block_tokens
        request.remote = (local_tokens, external) if is_async else (0, 0)
        self.external_tokens += external
        request.loaded = external
        self._is_sync |= bool(external) and not is_async
        for block in request.table[local_tokens // size : -(-(local_tokens + external) // size)]:
            self._allowed[block] = request.request_id

    def _plan(self, request: Request, count: int, blocks: list[int], *, resumed: bool) -> None:
        computed = request.num_computed_tokens
        self._budget -= count
        self._parts.append((request, computed, count))
        if not request.was_scheduled:
            data = interface.NewRequestData(
                request.request_id, request.prompt_token_ids, [], None, None, (list(request.table),), computed, None
            )
            self._news.append(data)
        else:
            self._cached.req_ids.append(request.request_id)
            self._cached.new_block_ids.append((list(blocks),) if blocks else None)
            self._cached.num_computed_tokens.append(computed)
            self._cached.num_output_tokens.append(request.num_output_tokens)
            self._cached.new_token_ids.append([])
            if resumed:
                self._cached.resumed_req_ids.add(request.request_id)
                self._cached.all_token_ids[request.request_id] = list(request.all_token_ids)
        request.was_scheduled = True
        # As vLLM does: blocks can be found as soon as they are planned.
        for number in range(min((computed + count) // self.of.block_tokens, len(request.block_hashes))):
            self.pool.cache(request.table[number], request.block_hashes[number])

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._parts = [part for part in self._parts if part[0] is not request]
        self._release(request)
        request.num_preemptions += 1
        self.waiting.insert(0, request)
        self._preempted.add(request.request_id)

    def _release(self, request: Request) -> None:
        self._free(request.table)
        request.table, request.num_computed_tokens, request.state = [], 0, "waiting"

    # The workers.

    def _execute(self, step: Step) -> list[tuple[Any, set[int], Any]]:
        output = step.output
        for rank in self.ranks:
            rank.call("handle_preemptions", output.kv_connector_metadata, judge=self._watch)
            rank.call("bind_connector_metadata", output.kv_connector_metadata, judge=self._watch)
            if output.has_sync_kv_loads:
                rank.call("start_load_kv", None, judge=self._watch)
        self._forward(step)
        results = []
        for rank in self.ranks:
            if not output.has_sync_kv_loads:
                rank.call("start_load_kv", None, judge=self._watch)
            rank.call("wait_for_save", judge=self._watch)
            done = rank.call("get_transfer_results", set(output.finished_req_ids), judge=self._watch)
            bad = rank.call("get_block_ids_with_load_errors", judge=self._watch)
            rank.call("get_kv_connector_stats", judge=self._watch)
            said = rank.call("build_connector_worker_meta", judge=self._watch)
            rank.call("clear_connector_metadata", judge=self._watch)
            results.append((done or interface.KVConnectorTransferResults(), set(bad or ()), said))
        for block in [block for block, name in self._allowed.items() if not self.requests[name].remote[1]]:
            del self._allowed[block]
            self._loaded_once.add(block)
        return results

    def _forward(self, step: Step) -> None:
        unsound: set[str] = set()
        if not step.parts:
            return
        for layer, name in enumerate(self.ranks[0].memory.names()):
            for rank in self.ranks:
                rank.call("wait_for_layer_load", name, judge=self._watch)
            # In the order of planning: a request may attend to blocks that one before it computes in this very step.
            for request, computed, count in step.parts:
                for rank in self.ranks:
                    for block, rule in rank.wrong(request, computed, [layer]):
                        self._suspects.append((self.step_number, request, block, rule))
                        unsound.add(request.request_id)
                for rank in self.ranks:
                    rank.compute(request, layer, computed, computed + count, request.request_id not in unsound)
            for rank in self.ranks:
                rank.call("save_kv_layer", name, rank.tensors[name], None, judge=self._watch)

    def _watch(self, changed: set[int], during: str) -> None:
        for block in changed - self._allowed.keys():
            computed = any(block in request.table[: request.num_computed_tokens // self.of.block_tokens] for request in self.running)
            rule = "load-after-finish" if block in self._loaded_once else "overwrites-computed" if computed else "writes-foreign"
            self.findings.add(rule, f"{self.name}: block {block}, in {during}")

    # What came of it.

    def _update(self, step: Step, results: list[tuple[Any, set[int], Any]]) -> None:
        bad = set().union(*(errors for _, errors, _ in results))
        received = self._all_ranks("received", [done.finished_recving for done, _, _ in results])
        sent = self._all_ranks("sent", [done.finished_sending for done, _, _ in results])
        self._judge_arrivals(received, bad)
        self._judge_suspects(bad)
        affected = self._take_back(step, bad) if bad else set()
        for request, computed, count in step.parts:
            if request.request_id in affected or request.state != "running":
                continue
            request.num_computed_tokens = computed + count
            if request.num_computed_tokens == request.num_tokens:
                self._sample(request)
        said = [meta for _, _, meta in results if meta is not None]
        together: Any = said[0] if said else None
        for other in said[1:]:
            together = together.aggregate(other)
        self._ask(
            "update_connector_output",
            interface.KVConnectorOutput(sent, received, kv_connector_worker_meta=together, invalid_block_ids=bad),
        )
        self._arrive(received)
        for name in sent:
            self._free(self.kept.pop(name, []))

    def _all_ranks(self, what: str, said: list[set[str] | None]) -> set[str]:
        """Requests that every rank has named by now."""
        seen: dict[str, set[int]] = self._done[what]  # type: ignore[assignment]
        for rank, names in enumerate(said):
            for name in names or ():
                known = name in self.kept if what == "sent" else name in self.requests and self.requests[name].remote[1]
                if not known or rank in seen.get(name, ()):
                    self.findings.add("unknown-done", f"{self.name}: {name}, {what}")
                    continue
                seen.setdefault(name, set()).add(rank)
        whole = {name for name, ranks in seen.items() if len(ranks) == self.of.ranks}
        for name in whole:
            del seen[name]
        return whole

    def _judge_arrivals(self, received: set[str], bad: set[int]) -> None:
        for name in received:
            request = self.requests[name]
            if request.state == "finished":
                continue
            local = request.remote[0]
            for rank in self.ranks:
                # What was reported before is no longer counted as computed.
                for block, rule in rank.wrong(request, request.num_computed_tokens, range(self.of.layers), local // self.of.block_tokens):
                    if block not in bad:
                        self._suspects.append((self.step_number, request, block, rule))

    def _judge_suspects(self, bad: set[int]) -> None:
        kept = []
        for since, request, block, rule in self._suspects:
            # One failed block takes all that follow it along.
            before = request.table[: request.table.index(block) + 1] if block in request.table else [block]
            if not bad.isdisjoint(before):
                if since < self.step_number:
                    self.findings.add("error-late", f"{self.name}: block {block}")
            elif self.step_number - since >= PATIENCE:
                self.findings.add(rule, f"{self.name}: block {block}")
            else:
                kept.append((since, request, block, rule))
        self._suspects = kept
        suspected = {block for _, _, block, _ in kept}
        for request in [request for request in self.running if suspected.intersection(request.table)]:
            # Nothing that was computed from a wrong block may be found by others, or they would be blamed as well.
            for block in request.table:
                self.pool.forget(block)
            self._end(request)

    def _take_back(self, step: Step, bad: set[int]) -> set[str]:
        size, affected = self.of.block_tokens, set()
        waiting = [(request, request.num_computed_tokens) for request in self.waiting if request.state in ("remote", "ready")]
        for request, computed in [(request, computed) for request, computed, _ in step.parts] + waiting:
            first = next((at for at in range(-(-computed // size)) if at < len(request.table) and request.table[at] in bad), None)
            if first is None:
                continue
            request.num_computed_tokens = first * size
            affected.add(request.request_id)
            for block in request.table[first:]:
                self.pool.forget(block)
        return affected

    def _sample(self, request: Request) -> None:
        token = int.from_bytes(request.chains[-1][:2], "little")
        request.append(token)
        if request.num_output_tokens >= request.max_tokens:
            self.outputs[request.request_id] = request.all_token_ids[request.num_prompt_tokens :]
            self._end(request)

    def _end(self, request: Request) -> None:
        """The request has finished or is cancelled. Blocks that a load writes stay until it has ended."""
        if request.state == "finished":
            return
        answer = self._ask("request_finished_all_groups", request, (list(request.table),)) if self._is_hma else self._ask(
            "request_finished", request, list(request.table)
        )
        was_remote = request.state == "remote"
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        request.state = "finished"
        request.cancel_at = None
        self._ended.add(request.request_id)
        if answer and answer[0] or was_remote:
            self.kept[request.request_id] = request.table
        else:
            self._free(request.table)
        request.table = list(request.table)

    @property
    def _is_hma(self) -> bool:
        return interface.supports_hma(self.connector)

    def _arrive(self, received: set[str]) -> None:
        for name in received:
            request = self.requests[name]
            request.remote = (0, 0)
            for block in [block for block, owner in self._allowed.items() if owner == name]:
                del self._allowed[block]
                self._loaded_once.add(block)
            if request.state == "finished":
                self._free(self.kept.pop(name, []))
            else:
                request.state = "ready"

    def _free(self, blocks: list[int]) -> None:
        self.pool.give_back(blocks)

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.connector, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises
            self.findings.add("raises", f"{name}: {type(error).__name__}: {error}")
            return None
