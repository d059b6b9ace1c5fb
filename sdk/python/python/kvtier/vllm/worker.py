"""A worker's side: moves blocks between the store and the engine's memory, and knows which loads failed.

Imports no vLLM and no torch. Called by one thread, the engine's; loads between steps run on a thread of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from .layerwise import LayerLoads, LayerSaves
from .layout import Layout
from .orders import Load, Orders, Outcome, Save
from .plan import Span, targets


class Moves(Protocol):
    """What the worker asks of the store; none of it raises."""

    def load(self, request: str, span: Span, rows: Sequence[Sequence[int]]) -> int: ...

    def lease(self, request: str, span: Span) -> Any: ...

    def load_layer(self, leases: Any, rows: Sequence[Sequence[int]], layer: int) -> int: ...

    def release(self, leases: Any) -> None: ...

    def save(self, span: Span, rows: Sequence[Sequence[int]]) -> int: ...

    def reserve(self, span: Span) -> Any: ...

    def commit(self, places: Any) -> list[str]: ...


class Worker:
    """One per rank. A step is `bind`, `begin`, the forward pass with `wait_layer` and `save_layer`, `end`; in a step without loads that its
    forward pass reads, `begin` may come after the forward pass."""

    def __init__(
        self,
        layout: Layout,
        store: Moves,
        *,
        between: Moves | None = None,
        layerwise: bool = False,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`between`: another connection for loads between steps, which would else hold up a step's saves. `ready` waits until everything that was launched
        on the device has been done."""
        self.layout = layout
        self.store = store
        self.between = between or store
        self.layerwise = layerwise
        self.ready = ready
        self._orders: Orders | None = None
        self._bad: set[int] = set()
        """Blocks of failed loads that were not reported yet."""
        self._failed: set[int] = set()
        """Serials of failed loads, for the saves that depend on them."""
        self._between: dict[str, tuple[Load, Future[int]]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="kvtier-load")
        self._loads: LayerLoads | None = None
        self._saves: LayerSaves | None = None
        self._stored = 0

    def bind(self, orders: Orders) -> None:
        """Takes a step's orders."""
        self._orders = orders
        self._failed = {serial for serial in self._failed if serial >= orders.oldest}

    def begin(self) -> None:
        """Loads what the step's forward pass reads: all of it before this returns or, layer-wise, each layer before `wait_layer` does."""
        orders = self._orders
        if orders is None:
            return
        now = [load for load in orders.loads if not load.is_async]
        for load in orders.loads:
            if load.is_async:
                self._between[load.request] = (load, self._threads.submit(self.between.load, load.request, load.span, load.rows))
        if self.layerwise and now:
            self._loads = LayerLoads(self.store, len(self.layout.slabs), now)
        else:
            for load in now:
                self._judge(load, self.store.load(load.request, load.span, load.rows))

    def wait_layer(self, name: str) -> None:
        """Returns when this layer's part of the step's loads is in place, or has failed."""
        layer = self.layout.layer_of(name)
        if self._loads is not None and layer is not None:
            self._loads.wait(layer)

    def save_layer(self, name: str) -> None:
        """This layer of the step has been computed: in layer-wise mode its part of what is saved is copied out now."""
        layer, orders = self.layout.layer_of(name), self._orders
        if not self.layerwise or orders is None or layer is None:
            return
        certain = [save for save in orders.saves if not save.after]
        if not certain:
            return
        if self._saves is None:
            self._saves = LayerSaves(self.store, self.layout, certain)
        self.ready()
        self._saves.copy(layer)

    def end(self) -> None:
        """The step has been computed: what it filled is offered to the store, unless it was computed from a failed load."""
        self._end_loads()
        orders, self._orders = self._orders, None
        if orders is None or not orders.saves:
            return
        self.ready()
        done: list[Save] = []
        if self._saves is not None:
            done, stored = self._saves.finish()
            self._stored += stored
            self._saves = None
        for save in orders.saves:
            if save not in done and not self._failed.intersection(save.after):
                self._stored += self.store.save(save.span, save.rows)

    def arrived(self) -> set[str]:
        """Requests whose loads between steps have ended, well or badly; each once. Their failed blocks are in `bad_blocks` from now on."""
        done = {name for name, (_, future) in self._between.items() if future.done()}
        for name in done:
            load, future = self._between.pop(name)
            self._judge(load, future.result() if future.exception() is None else 0)
        return done

    def bad_blocks(self) -> set[int]:
        """Blocks that were to be loaded and are not; each once, no later than the step that reads them."""
        self._end_loads()
        bad, self._bad = self._bad, set()
        return bad

    def outcome(self, step: int) -> Outcome:
        """What to tell the scheduler's side after a step."""
        stored, self._stored = self._stored, 0
        return Outcome(step, stored)

    def close(self) -> None:
        """Waits for loads that run: they write the engine's memory."""
        self._end_loads()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _end_loads(self) -> None:
        if self._loads is not None:
            loads, self._loads = self._loads, None
            for load, whole in loads.finish():
                self._judge(load, whole)

    def _judge(self, load: Load, whole: int) -> None:
        bad = targets(load.rows[whole:])
        if bad:
            self._bad |= bad
            self._failed.add(load.serial)
