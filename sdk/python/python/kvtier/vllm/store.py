"""One rank's blocks in the daemon, behind calls that never raise: whatever goes wrong there is a miss here."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import kvtier

from .identity import Identity
from .plan import SKIP, Span

logger = logging.getLogger("vllm.kvtier")

QUIET_SECONDS = 60.0
"""A failing daemon is told of once in so long."""
NAME_BYTES = 64
"""The longest name of a request that the daemon takes."""
UNIQUE = re.compile(r"-[0-9a-f]{8}\Z")
"""What vLLM puts behind a request's name to tell it from others of that name."""


def name_outside(request: str) -> str:
    """A request's name as whoever sent it knows it, as much of it as the daemon takes."""
    return UNIQUE.sub("", request).encode()[:NAME_BYTES].decode(errors="ignore")


def form_of(identity: Identity) -> kvtier.Opaque | kvtier.Lossy:
    """How blocks are stored."""
    lossy = identity.lossy
    if lossy is None:
        return kvtier.Opaque(layer_bytes=identity.layer_bytes, layout=identity.layout)
    return kvtier.Lossy(
        lossy.form,
        layer_bytes=identity.layer_bytes,
        layout=identity.layout,
        block_tokens=identity.block_tokens,
        keys=astuple(lossy.keys),
        values=astuple(lossy.values),
    )


class Store:
    """A connection for blocks of one identity; `slabs` for the side that moves bytes."""

    def __init__(self, identity: Identity, settings: Any, name: str, slabs: Any = None) -> None:
        self.client = kvtier.Client(
            settings.socket,
            manifest=kvtier.Manifest(**identity.manifest),
            form=form_of(identity),
            salt=settings.salt,
            name=name,
            deadline_ms=settings.deadline_ms,
        )
        self.slabs = slabs
        self._is_plain = identity.lossy is None
        self._told = float("-inf")
        self._missed = ("", 0)
        """The last request that a miss was noted for, and at which block."""
        self._was_full = False
        self._was_unfit = False

    def prepare(self) -> None:
        """Has the memory through which blocks are stored committed before the first step waits for it."""
        try:
            self.client.prepare()
        except kvtier.Error as error:
            self._tell("get ready to store", error)

    def find(self, span: Span, request: str) -> list[str]:
        """The tier of each block that is there, from the first one on."""
        try:
            tiers = list(self.client.lookup(span.keys, parent=span.parent, depth=span.first).tiers)
            if len(tiers) < len(span.keys):
                self._note_miss(span, len(tiers), request)
            return tiers
        except kvtier.Error as error:
            self._tell("look blocks up", error)
            return []

    def _note_miss(self, span: Span, number: int, request: str) -> None:
        """Has the daemon count and remember, under the request's name, this block and all behind it: it does for blocks that are asked for in earnest.

        A request that waits for room is looked up again in each step: it missed once."""
        if self._missed == (request, span.first + number):
            return
        self._missed = (request, span.first + number)
        parent = span.keys[number - 1] if number else span.parent
        self.client.tag(name_outside(request))
        with self.client.acquire(span.keys[number:], parent=parent, depth=span.first + number):
            pass

    def load(self, request: str, span: Span, rows: Sequence[Sequence[int]]) -> int:
        """Copies blocks into the slabs; how many of them, from the first one on, are whole and verified. All others may be half written."""
        try:
            self.client.tag(name_outside(request))
            loaded = self.client.load(span.keys, self.slabs, rows, parent=span.parent, depth=span.first)
        except kvtier.Error as error:
            self._tell("load blocks", error)
            return 0
        if loaded.miss is not None:
            logger.info("kvtier: %d of %d blocks loaded; the next one: %s", len(loaded.tiers), len(span.keys), loaded.miss)
        return len(loaded.tiers)

    def lease(self, request: str, span: Span) -> Any:
        """Blocks that stay where they are while they are loaded layer by layer, until they are given to `release`; as many as there are."""
        try:
            self.client.tag(name_outside(request))
            leases = self.client.acquire(span.keys, parent=span.parent, depth=span.first)
        except kvtier.Error as error:
            self._tell("load blocks", error)
            return ()
        if leases.miss is not None:
            logger.info("kvtier: %d of %d blocks found to load; the next one: %s", len(leases), len(span.keys), leases.miss)
        return leases

    def load_layer(self, leases: Any, rows: Sequence[Sequence[int]], layer: int) -> int:
        """Copies one layer of leased blocks into the slabs; how many of them, from the first one on, are whole in it."""
        if not leases:
            return 0
        try:
            return int(leases.load(self.slabs, rows[: len(leases)], layers=range(layer, layer + 1)))
        except kvtier.Error as error:
            self._tell("load blocks", error)
            return 0

    def release(self, leases: Any) -> None:
        """Gives them back."""
        try:
            if leases:
                leases.release()
                self.client.give_back()
        except kvtier.Error as error:
            self._tell("give blocks back", error)

    def save(self, span: Span, rows: Sequence[Sequence[int]]) -> int:
        """Offers blocks; how many of them the store took."""
        assert not any(block == SKIP for row in rows for block in row), "a stored block is saved whole"
        try:
            states = self.client.store(span.keys, self.slabs, rows, parent=span.parent, depth=span.first)
        except kvtier.Error as error:
            self._tell("store blocks", error)
            return 0
        if "full" in states and not self._was_full:
            self._was_full = True
            what = (states.count("full"), len(states), self.client.slot_bytes)
            logger.warning("kvtier: %d of %d blocks found no room; one takes %d bytes of the daemon's host_mem and, on its way in, of client_staging", *what)
        if "unfit" in states and not self._was_unfit:
            self._was_unfit = True
            logger.warning("kvtier: %d of %d blocks do not fit the lossy form: a value is not finite, or too large", states.count("unfit"), len(states))
        return states.count("inserted")

    def reserve(self, span: Span) -> Any:
        """Places to write blocks into, or `None`; also where blocks are encoded, which are stored in one piece."""
        if not self._is_plain:
            return None
        try:
            return self.client.reserve(span.keys, parent=span.parent, depth=span.first)
        except kvtier.Error as error:
            self._tell("reserve blocks", error)
            return None

    def commit(self, places: Any) -> list[str]:
        """Publishes what was written."""
        try:
            return list(places.commit())
        except kvtier.Error as error:
            self._tell("commit blocks", error)
            return []

    def close(self) -> None:
        """Ends the connection."""
        self.client.close()

    def _tell(self, what: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._told >= QUIET_SECONDS:
            self._told = now
            logger.warning("kvtier: failed to %s, going on without: %s", what, error)
