"""A daemon and its clients in this process' memory, with the interface of `kvtier.Client`, and faults on request.

`install` puts these classes in the places of `kvtier`'s own, so that a plugin under test talks to a `Daemon` of the kit without knowing.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class Error(Exception):
    """As `kvtier.Error`: what went wrong, for programs in `code`."""

    def __init__(self, code: str) -> None:
        super().__init__(f"{code} (conformance store)")
        self.code = code


class Manifest:
    """As `kvtier.Manifest`: any fields, all of which count."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        if len(fields["weights"]) != 32:
            raise ValueError("weights are 32 bytes")


@dataclass(frozen=True)
class Opaque:
    """As `kvtier.Opaque`."""

    layer_bytes: int
    layout: str


class Slabs:
    """As `kvtier.Slabs`: a slab per layer, engine block `b` at `b * stride`."""

    def __init__(self, layers: Sequence[Any], *, block_bytes: int, stride: int | None = None, writable: bool = True) -> None:
        self.block_bytes = block_bytes
        self.stride = block_bytes if stride is None else stride
        self._keep: list[tuple[int, int, Any]] = [layer if isinstance(layer, tuple) else tuple_of(layer) for layer in layers]

    def __len__(self) -> int:
        return len(self._keep)

    def address(self, layer: int, block: int) -> int:
        """Where a block's layer begins. Errors: `IndexError` outside of the slab."""
        start, size, _ = self._keep[layer]
        if block < 0 or block * self.stride + self.block_bytes > size:
            raise IndexError(f"block {block} is not in a slab of {size} bytes")
        return start + block * self.stride

    def read(self, layer: int, blocks: Sequence[int]) -> bytes:
        """Bytes of blocks, one after the other."""
        return b"".join(ctypes.string_at(self.address(layer, block), self.block_bytes) for block in blocks)

    def write(self, layer: int, block: int, data: bytes) -> None:
        """Overwrites a block's layer."""
        if len(data) != self.block_bytes:
            raise ValueError(f"{len(data)} bytes for a block of {self.block_bytes}")
        ctypes.memmove(self.address(layer, block), data, self.block_bytes)


def tuple_of(buffer: Any) -> tuple[int, int, Any]:
    view = memoryview(buffer).cast("B")
    return ctypes.addressof(ctypes.c_char.from_buffer(view)), view.nbytes, buffer


@dataclass
class Faults:
    """What goes wrong, decided by a seed. Chances are from 0 to 1."""

    seed: int = 0
    lost: float = 0.0
    """A block that was found is gone when it is loaded."""
    torn: float = 0.0
    """A load breaks off inside a block, which is then half written."""
    refused: float = 0.0
    """A block that is offered is not taken."""
    is_gone: bool = False
    """The daemon does not answer."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def happens(self, chance: float) -> bool:
        """Draws."""
        return chance > 0 and self._random.random() < chance


@dataclass
class Entry:
    """A block: its layers, and what stood before it."""

    layers: list[bytes]
    parent: bytes | None
    depth: int
    tier: str = "host"


@dataclass
class Daemon:
    """What all clients share."""

    faults: Faults = field(default_factory=Faults)
    spaces: dict[bytes, dict[bytes, Entry]] = field(default_factory=dict)
    forms: dict[bytes, Opaque] = field(default_factory=dict)
    failed_loads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def entries(self) -> Iterator[Entry]:
        """All blocks."""
        for space in self.spaces.values():
            yield from space.values()

    def demote(self) -> None:
        """All blocks are on the disk from now on."""
        for entry in self.entries():
            entry.tier = "disk"


_daemon = Daemon()


@dataclass(frozen=True)
class Found:
    """As what `lookup` and `load` of `kvtier.Client` return."""

    tiers: list[str]
    miss: str | None


class Client:
    """As `kvtier.Client`, of the daemon that is installed."""

    def __init__(
        self,
        socket: Any = None,
        *,
        manifest: Manifest,
        form: Opaque,
        salt: str | None = None,
        name: str = "python",
        deadline_ms: int = 2000,
    ) -> None:
        self.daemon = _daemon
        self.form = form
        self.namespace = namespace(manifest, form, salt)
        self.slot_bytes = form.layer_bytes * manifest.fields["layers"]
        self._blocks = self.daemon.spaces.setdefault(self.namespace, {})
        self._is_closed = False

    @property
    def connected(self) -> bool:
        return not self.daemon.faults.is_gone and not self._is_closed

    def lookup(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> Found:
        self._answer(hashes)
        tiers: list[str] = []
        for key in hashes:
            entry = self._blocks.get(key)
            if entry is None:
                return Found(tiers, "never_stored")
            tiers.append(entry.tier)
        return Found(tiers, None)

    def prefetch(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> int:
        return len(self.lookup(hashes).tiers)

    def load(
        self,
        hashes: Sequence[bytes],
        slabs: Slabs,
        blocks: Sequence[Sequence[int]],
        *,
        parent: bytes | None = None,
        depth: int = 0,
    ) -> Found:
        self._answer(hashes)
        faults = self.daemon.faults
        tiers: list[str] = []
        for key, row in zip(hashes, blocks, strict=True):
            entry = self._blocks.get(key)
            if entry is None or faults.happens(faults.lost):
                self.daemon.failed_loads += 1
                return Found(tiers, "evicted")
            if not self._copy(entry, slabs, row, range(len(slabs))):
                return Found(tiers, "failed_check")
            tiers.append(entry.tier)
        return Found(tiers, None)

    def _copy(self, entry: Entry, slabs: Slabs, row: Sequence[int], layers: range) -> bool:
        """Copies layers of a block; false when it was lost on the way: then half of what should be there is, and nothing more."""
        torn = self.daemon.faults.happens(self.daemon.faults.torn)
        for layer in layers:
            section = entry.layers[layer]
            for part, block in enumerate(row):
                if block == -1:
                    continue
                data = section[part * slabs.block_bytes : (part + 1) * slabs.block_bytes]
                if torn:
                    whole = slabs.read(layer, [block])
                    data = data[: len(data) // 2] + bytes(255 - byte for byte in whole[len(data) // 2 :])
                slabs.write(layer, block, data)
            if torn:
                self.daemon.failed_loads += 1
                return False
        return True

    def store(
        self, hashes: Sequence[bytes], slabs: Slabs, blocks: Sequence[Sequence[int]], *, parent: bytes | None = None, depth: int = 0
    ) -> list[str]:
        with self.reserve(hashes, parent=parent, depth=depth) as places:
            for place, row in zip(places, blocks, strict=True):
                for layer in range(len(slabs)):
                    place.layer(layer)[:] = slabs.read(layer, row)
            return places.commit()

    def reserve(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> Reservations:
        self._answer(hashes)
        return Reservations(self, hashes, parent, depth)

    def prepare(self) -> None:
        self._answer(())

    def acquire(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> Leases:
        found, faults = self.lookup(hashes), self.daemon.faults
        lost = next((at for at in range(len(found.tiers)) if faults.happens(faults.lost)), None)
        if lost is not None:
            self.daemon.failed_loads += 1
            return Leases(self, [self._blocks[key] for key in hashes[:lost]], "evicted")
        return Leases(self, [self._blocks[key] for key in hashes[: len(found.tiers)]], found.miss)

    def give_back(self) -> None:
        self._answer([])

    def tag(self, request: str) -> None:
        self._answer([])

    def stats(self) -> dict[str, Any]:
        return {}

    def explain(self, request: str) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._is_closed = True

    def _answer(self, hashes: Sequence[bytes]) -> None:
        if not self.connected:
            raise Error("not_connected")
        if not all(isinstance(key, bytes) and len(key) == 32 for key in hashes):
            raise ValueError("a hash is 32 bytes")


class Leases(Sequence[bytes]):
    """Leased blocks, as their bytes."""

    def __init__(self, client: Client, entries: list[Entry], miss: str | None) -> None:
        self._client, self._entries, self.miss = client, entries, miss

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, at: Any) -> Any:
        return b"".join(self._entries[at].layers)

    def load(self, slabs: Slabs, blocks: Sequence[Sequence[int]], *, layers: range | None = None) -> int:
        for whole, (entry, row) in enumerate(zip(self._entries, blocks, strict=True)):
            if not self._client._copy(entry, slabs, row, range(len(slabs)) if layers is None else layers):
                return whole
        return len(self._entries)

    def release(self) -> None:
        self._entries = []

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Place:
    """Where a reserved block is written."""

    def __init__(self, state: str, layers: int, layer_bytes: int) -> None:
        self.state = state
        self.layers = [bytearray(layer_bytes) for _ in range(layers)]

    def layer(self, layer: int) -> memoryview:
        return memoryview(self.layers[layer])


class Reservations(Sequence[Place]):
    """Reserved blocks, until they are committed or left."""

    def __init__(self, client: Client, hashes: Sequence[bytes], parent: bytes | None, depth: int) -> None:
        self._client, self._hashes, self._before = client, list(hashes), (parent, depth)
        form = client.form
        layers = client.slot_bytes // form.layer_bytes
        self._places = []
        faults = client.daemon.faults
        for key in hashes:
            state = "present" if key in client._blocks else "full" if faults.happens(faults.refused) else "reserved"
            self._places.append(Place(state, layers, form.layer_bytes))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        return self._places[at]

    def __enter__(self) -> Reservations:
        return self

    def __exit__(self, *_: object) -> None:
        self._places = []

    def commit(self) -> list[str]:
        """Publishes what was reserved."""
        self._client._answer(self._hashes)
        parent, depth = self._before
        answers = []
        for number, (key, place) in enumerate(zip(self._hashes, self._places)):
            answer = place.state
            if answer == "reserved":
                with self._client.daemon.lock:
                    is_new = key not in self._client._blocks
                    if is_new:
                        self._client._blocks[key] = Entry([bytes(layer) for layer in place.layers], parent, depth + number)
                answer = "inserted" if is_new else "present"
            answers.append(answer)
            parent = key
        return answers


def namespace(manifest: Manifest, form: Opaque, salt: str | None) -> bytes:
    """Digest over everything that two clients must agree in."""
    words = [sorted((name, repr(value)) for name, value in manifest.fields.items()), form.layer_bytes, form.layout, salt]
    return hashlib.sha256(repr(words).encode()).digest()


@contextmanager
def install(daemon: Daemon) -> Iterator[Daemon]:
    """`kvtier`'s names mean this module's, and this daemon, while the context lasts."""
    global _daemon
    import kvtier

    names = {"Client": Client, "Error": Error, "Manifest": Manifest, "Opaque": Opaque, "Slabs": Slabs}
    before, _daemon = _daemon, daemon
    kept = {name: kvtier.__dict__[name] for name in names if name in kvtier.__dict__}
    kvtier.__dict__.update(names)
    try:
        yield daemon
    finally:
        _daemon = before
        for name in names:
            kvtier.__dict__.pop(name, None)
        kvtier.__dict__.update(kept)
