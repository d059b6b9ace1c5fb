"""Blocks in lossy forms: elements are found by the layout that the engine states, and come back as the form makes of them."""

import os
import random
import struct
import unittest
from collections.abc import Iterator
from typing import Any

import kvtier
from rig import LAYERS, Case, chain, manifest

HEADS, TOKENS, CHANNELS = 2, 16, 8
LAYER_BYTES = 2 * 2 * HEADS * TOKENS * CHANNELS
Four = tuple[int, int, int, int]


def by_channel(tokens: int) -> tuple[Four, Four]:
    """Heads of keys by channel and values by token."""
    part = tokens * CHANNELS
    return (0, 2 * part, 1, tokens), (part, 2 * part, CHANNELS, 1)


def by_token(tokens: int) -> tuple[Four, Four]:
    """All keys before all values, both by token."""
    keys = (0, CHANNELS, HEADS * CHANNELS, 1)
    return keys, (tokens * HEADS * CHANNELS, *keys[1:])


class Engine:
    """Elements in blocks of `tokens` tokens, in one of the layouts above."""

    def __init__(self, layout: tuple[Four, Four], tokens: int, blocks: int) -> None:
        self.layout, self.tokens = layout, tokens
        self.block_bytes = LAYER_BYTES * tokens // TOKENS
        self.layers = [bytearray(blocks * self.block_bytes) for _ in range(LAYERS)]
        self.slabs = kvtier.Slabs(self.layers, block_bytes=self.block_bytes)

    def places(self, block: int) -> Iterator[int]:
        """The byte of each element, by side, head, token and channel."""
        for first, heads, tokens, channels in self.layout:
            for head in range(HEADS):
                for token in range(self.tokens):
                    for channel in range(CHANNELS):
                        yield block * self.block_bytes + 2 * (first + head * heads + token * tokens + channel * channels)

    def write(self, block: int, layer: int, values: list[float]) -> None:
        for place, value in zip(self.places(block), values, strict=True):
            self.layers[layer][place : place + 2] = struct.pack("<f", value)[2:]

    def read(self, block: int, layer: int) -> list[float]:
        slab = self.layers[layer]
        return [struct.unpack("<f", b"\0\0" + slab[place : place + 2])[0] for place in self.places(block)]

    def form(self, form: str, layout: str = "stated") -> kvtier.Lossy:
        keys, values = self.layout
        return kvtier.Lossy(form, layer_bytes=LAYER_BYTES, layout=layout, block_tokens=self.tokens, keys=keys, values=values)


def some(seed: int, tokens: int) -> list[float]:
    """Values that bf16 has exactly."""
    rng = random.Random(seed)
    return [rng.randrange(-255, 256) / 64 for _ in range(2 * HEADS * tokens * CHANNELS)]


class Lossy(Case):
    def open(self, form: kvtier.Lossy | kvtier.Opaque, **changes: Any) -> kvtier.Client:
        path = os.path.join(self.folder, "kvtier.sock")
        return kvtier.Client(path, manifest=manifest(**changes), form=form, deadline_ms=20_000)

    def test_elements_come_back_as_the_form_has_them(self) -> None:
        self.serve()
        hashes = chain("a", 3)
        for form, error in (("i8h", 4 / 127 / 2 * 1.02 + 4 / 256), ("kc4vt4", 8 / 15 / 2 * 1.02 + 4 / 256), ("kc4vt4:k8=1", 8 / 15 / 2 * 1.02 + 4 / 256)):
            loaded = []
            for layout, tokens in ((by_channel(16), 16), (by_token(8), 8)):
                with self.subTest(form=form, tokens=tokens):
                    chunk = TOKENS // tokens
                    source, target = Engine(layout, tokens, 3 * chunk), Engine(layout, tokens, 4 * chunk)
                    for number in range(3):
                        for layer in range(LAYERS):
                            # The same elements in both layouts, whole stored blocks of them.
                            whole = some(100 * number + layer, TOKENS)
                            for part in range(chunk):
                                source.write(number * chunk + part, layer, self.part(whole, part, tokens))
                    rows = [list(range(number * chunk, (number + 1) * chunk)) for number in range(4)]
                    with self.open(source.form(form)) as client, self.open(source.form(form)) as other:
                        self.assertEqual(client.store(hashes, source.slabs, rows[:3]), ["inserted"] * 3)
                        found = other.load(hashes, target.slabs, rows[1:])
                        self.assertEqual((found.tiers, found.miss), (["host"] * 3, None))
                        with other.acquire(hashes) as leases:
                            again = Engine(layout, tokens, 4 * chunk)
                            for layer in range(LAYERS):
                                self.assertEqual(leases.load(again.slabs, rows[1:], layers=range(layer, layer + 1)), 3)
                            self.assertEqual(again.layers, target.layers, "layer by layer")
                            self.raises("usage", memoryview, leases[0])
                        self.raises("usage", client.reserve, hashes)
                        # A page each of slot header, K header, scales and codes; `i8h` has no K header.
                        self.assertEqual(client.slot_bytes, 4096 * (3 if form == "i8h" else 4))
                    values = [target.read(block, layer) for block in range(chunk, 4 * chunk) for layer in range(LAYERS)]
                    sent = [source.read(block, layer) for block in range(3 * chunk) for layer in range(LAYERS)]
                    worst = max(abs(a - b) for mine, theirs in zip(values, sent, strict=True) for a, b in zip(mine, theirs, strict=True))
                    self.assertTrue(0 < worst <= error, worst)
                    self.assertEqual(target.layers[0][: chunk * target.block_bytes], bytes(chunk * target.block_bytes), "a block that was not asked for")
                    loaded.append(sorted(value for block in values for value in block))
            self.assertEqual(loaded[0], loaded[1], "what comes back does not depend on where the engine has it")

    @staticmethod
    def part(whole: list[float], part: int, tokens: int) -> list[float]:
        """The elements of some of the tokens."""
        rows = [whole[at : at + CHANNELS] for at in range(0, len(whole), CHANNELS)]
        chosen = [row for at, row in enumerate(rows) if part * tokens <= at % TOKENS < (part + 1) * tokens]
        return [value for row in chosen for value in row]

    def test_forms_and_layouts_share_nothing(self) -> None:
        self.serve()
        hashes, engine = chain("a", 1), Engine(by_channel(16), 16, 1)
        for layer in range(LAYERS):
            engine.write(0, layer, some(layer, 16))
        with self.open(engine.form("i8h")) as client:
            self.assertEqual(client.store(hashes, engine.slabs, [[0]]), ["inserted"])
            self.assertEqual(len(client.lookup(hashes)), 1)
        keys, values = by_channel(16)
        others: dict[str, kvtier.Lossy | kvtier.Opaque] = {
            "form": engine.form("kc4vt4"),
            "layout": engine.form("i8h", "another"),
            "exact": kvtier.Opaque(layer_bytes=LAYER_BYTES, layout="stated"),
            "keys and values exchanged": kvtier.Lossy(
                "i8h", layer_bytes=LAYER_BYTES, layout="stated", block_tokens=16, keys=(values[0], *keys[1:]), values=(keys[0], *values[1:])
            ),
        }
        for what, form in others.items():
            with self.subTest(what), self.open(form) as client:
                found = client.lookup(hashes)
                # The same prompt stored by another engine that differs in one field is told as such.
                self.assertEqual((len(found), found.miss), (0, "never_stored" if what == "exact" else "namespace"))

    def test_values_that_do_not_fit_are_not_stored_and_keep_no_place(self) -> None:
        self.serve()
        hashes, engine = chain("a", 3), Engine(by_channel(16), 16, 3)
        for block in range(3):
            for layer in range(LAYERS):
                engine.write(block, layer, some(layer, 16))
        for wrong in (float("nan"), float("inf")):
            values = some(7, 16)
            values[13] = wrong
            engine.write(1, 2, values)
            with self.open(engine.form("kc4vt4"), adapter=str(wrong)) as client:
                self.assertEqual(client.store(hashes, engine.slabs, [[0], [1], [2]]), ["inserted", "unfit", "inserted"])
                self.assertEqual((len(client.lookup(hashes)), client.stats()["reservations"]), (1, 0))
                self.assertEqual(client.store(hashes[1:2], engine.slabs, [[1]], parent=hashes[0], depth=1), ["unfit"])

    def test_what_makes_no_sense_is_told(self) -> None:
        engine = Engine(by_channel(16), 16, 1)
        keys, values = engine.layout
        whole: dict[str, Any] = {"layer_bytes": LAYER_BYTES, "layout": "stated", "block_tokens": 16, "keys": keys, "values": values}
        wrong: list[dict[str, Any]] = [
            {"form": "q4_0"},
            {"form": "raw16"},
            {"keys": values},
            {"keys": (0, 2, 2, 2)},
            {"layer_bytes": 2 * LAYER_BYTES},
            {"block_tokens": 12},
        ]
        for change in wrong:
            with self.subTest(change):
                given = {**whole, **change}
                self.raises("usage", lambda given=given: self.open(kvtier.Lossy(given.pop("form", "i8h"), **given)))
        self.raises("usage", self.open, engine.form("i8h"), dtype="f16")
        self.assertEqual((engine.form("i8h").form, engine.form("i8h") == engine.form("i8h")), ("i8h", True))
        half = Engine(by_token(8), 8, 2)
        self.serve()
        with self.open(engine.form("i8h")) as client:
            self.raises("usage", client.store, chain("a", 1), half.slabs, [[0, 1]])


if __name__ == "__main__":
    unittest.main()
