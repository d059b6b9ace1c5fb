"""Loads and saves that go layer by layer, while the forward pass computes.

Loads run on a thread: blocks are leased once, then copied layer after layer in the order of the forward pass, and attention waits for its layer only. What a
layer was copied from is looked at again after the copy, so that what attention reads is the block's; a block that is lost on the way fails as a whole, in this step.
Saves copy a layer out as soon as it has been computed, into places that were reserved for whole blocks; nothing is visible before the step has ended.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from .layout import Layout
from .orders import Load, Save


class LayerLoads:
    """The loads of one step."""

    def __init__(self, store: Any, layers: int, loads: Sequence[Load]) -> None:
        self._store = store
        self._loads = loads
        self._whole = [len(load.rows) for load in loads]
        self._done = [threading.Event() for _ in range(layers)]
        self._thread = threading.Thread(target=self._work, name="kvtier-layers")
        self._thread.start()

    def wait(self, layer: int) -> None:
        """Returns when the layer is loaded, or will not be."""
        self._done[layer].wait()

    def finish(self) -> list[tuple[Load, int]]:
        """Every load with the blocks of it that are whole in all layers."""
        self._thread.join()
        return list(zip(self._loads, self._whole))

    def _work(self) -> None:
        leased: list[Any] = []
        try:
            leased = [self._store.lease(load.request, load.span) for load in self._loads]
            for layer, done in enumerate(self._done):
                for number, (load, leases) in enumerate(zip(self._loads, leased)):
                    if self._whole[number]:
                        self._whole[number] = min(self._whole[number], self._store.load_layer(leases, load.rows, layer))
                done.set()
        except BaseException:
            self._whole = [0] * len(self._loads)
            raise
        finally:
            for event in self._done:
                event.set()
            for leases in leased:
                self._store.release(leases)


class LayerSaves:
    """The saves of one step."""

    def __init__(self, store: Any, layout: Layout, saves: Sequence[Save]) -> None:
        self._store = store
        self._layout = layout
        self._open = [(save, places) for save in saves if (places := reserved(store, save)) is not None]
        self._copied: set[int] = set()

    def copy(self, layer: int) -> None:
        """Copies one layer of all blocks that have a place."""
        for save, places in self._open:
            for row, place in zip(save.rows, places):
                if place.state == "reserved":
                    gather(self._layout, layer, row, place.layer(layer))
        self._copied.add(layer)

    def finish(self) -> tuple[list[Save], int]:
        """Publishes what has all its layers: those saves, and how many blocks the store took. The rest is given back."""
        done, stored = [], 0
        for save, places in self._open:
            with places:
                if len(self._copied) == len(self._layout.slabs):
                    stored += self._store.commit(places).count("inserted")
                    done.append(save)
        return done, stored


def reserved(store: Any, save: Save) -> Any:
    """Places for all of a save's blocks, those that are there already aside, or `None`: then it is saved in one piece."""
    places = store.reserve(save.span)
    if places is None:
        return None
    if all(place.state in ("reserved", "present", "pending") for place in places) and len(places) == len(save.rows):
        return places.__enter__()
    with places:
        return None


def gather(layout: Layout, layer: int, row: Sequence[int], out: memoryview) -> None:
    """Copies a layer of a stored block, its engine blocks one after the other, into `out`."""
    size = layout.block_bytes
    if out.nbytes != size * len(row):
        raise ValueError(f"{len(row)} blocks of {size} bytes do not fit into {out.nbytes}")
    target = ctypes.addressof(ctypes.c_char.from_buffer(out))
    for part, block in enumerate(row):
        ctypes.memmove(target + part * size, layout.address(layer, block), size)
