"""Whole blocks between an engine's slabs and the daemon."""

import os
import unittest

import kvtier
import rig
from rig import BLOCK_BYTES, LAYERS, Case, Engine, chain, delete_namespace


class Transfer(Case):
    def test_blocks_come_back_in_other_places_of_another_engine(self) -> None:
        self.serve()
        hashes = chain("a", 5)
        source, target = Engine(8), Engine(8, gap=24)
        source.fill(1)
        with self.client() as client, self.client() as other:
            self.assertTrue(client.connected)
            found = client.lookup(hashes)
            self.assertEqual((found.tiers, found.miss), ([], "never_stored"))
            outcomes = client.store(hashes, source.slabs, [[block] for block in [7, 3, 0, 1, 2]])
            self.assertEqual(outcomes, ["inserted"] * 5)
            again = client.store(hashes[:2], source.slabs, [[7], [3]])
            self.assertEqual(again, ["present"] * 2)
            loaded = other.load([*hashes, b"\0" * 32], target.slabs, [[0], [1], [5], [6], [7], [2]])
            self.assertEqual((loaded.tiers, loaded.miss, len(loaded)), (["host"] * 5, "never_stored", 5))
        for into, out_of in zip([0, 1, 5, 6, 7], [7, 3, 0, 1, 2]):
            self.assertEqual(target.blocks(into), source.blocks(out_of))
        self.assertEqual(target.blocks(3), [bytes(BLOCK_BYTES)] * LAYERS, "a block that was not asked for")

    def test_a_run_goes_on_behind_its_parent(self) -> None:
        self.serve()
        hashes, engine = chain("a", 4), Engine(4)
        engine.fill(2)
        with self.client() as client:
            client.store(hashes[:2], engine.slabs, [[0], [1]])
            client.store(hashes[2:], engine.slabs, [[2], [3]], parent=hashes[1], depth=2)
            self.assertEqual(len(client.lookup(hashes)), 4)
            self.assertEqual(len(client.load(hashes[3:], engine.slabs, [[0]], parent=hashes[2], depth=3)), 1)
            self.assertEqual(engine.blocks(0), engine.blocks(3))
            self.raises("usage", client.lookup, hashes, parent=hashes[0])
            self.raises("usage", client.lookup, hashes, depth=1)

    def test_four_engine_blocks_make_a_stored_one(self) -> None:
        self.serve()
        hashes, source, target = chain("a", 2), Engine(8), Engine(8)
        source.fill(3)
        with self.client(chunk=4) as client:
            self.assertEqual(client.store(hashes, source.slabs, [[6, 1, 2, 0], [3, 4, 5, 7]]), ["inserted"] * 2)
            loaded = client.load(hashes, target.slabs, [[-1, 7, 6, -1], [0, 1, 2, 3]])
            self.assertEqual(len(loaded), 2)
            with client.acquire(hashes) as leases:
                expected = b"".join(source.block(layer, block) for layer in range(LAYERS) for block in [6, 1, 2, 0])
                self.assertEqual(bytes(leases[0]), expected, "a layer's blocks stand one after the other")
        for into, out_of in zip([7, 6, 0, 1, 2, 3], [1, 2, 3, 4, 5, 7]):
            self.assertEqual(target.blocks(into), source.blocks(out_of))
        for untouched in [4, 5]:
            self.assertEqual(target.blocks(untouched), [bytes(BLOCK_BYTES)] * LAYERS)

    def test_more_blocks_than_a_call_or_the_staging_memory_holds(self) -> None:
        self.serve()
        count = 1_500
        hashes, source, target = chain("many", count), Engine(count), Engine(count)
        source.fill(4)
        with self.client() as client:
            outcomes = client.store(hashes, source.slabs, [[block] for block in range(count)])
            self.assertEqual(outcomes, ["inserted"] * count)
            loaded = client.load(hashes, target.slabs, [[block] for block in range(count)])
            self.assertEqual((len(loaded), loaded.miss), (count, None))
        self.assertEqual(target.layers, source.layers)

    def test_blocks_of_which_the_staging_memory_holds_one_or_two(self) -> None:
        for chunk, images in ((40, 2), (75, 1)):
            daemon = self.serve()
            hashes, source, target = chain("large", 5), Engine(5 * chunk), Engine(5 * chunk)
            source.fill(5)
            rows = [list(range(at * chunk, (at + 1) * chunk)) for at in range(5)]
            with self.client(chunk=chunk) as client:
                client.prepare()
                self.assertEqual((256 << 10) // client.slot_bytes, images)
                self.assertEqual(client.store(hashes[1:2], source.slabs, rows[1:2], parent=hashes[0], depth=1), ["inserted"])
                outcomes = client.store(hashes, source.slabs, rows)
                self.assertEqual(outcomes, ["inserted", "present", "inserted", "inserted", "inserted"])
                self.assertEqual(len(client.load(hashes, target.slabs, rows)), 5)
                self.assertEqual(client.stats()["reservations"], 0)
            self.assertEqual(target.layers, source.layers)
            daemon.end()

    def test_layers_are_loaded_one_by_one(self) -> None:
        self.serve()
        hashes, source, target = chain("a", 3), Engine(8), Engine(8)
        source.fill(6)
        with self.client(chunk=2) as client:
            client.store(hashes, source.slabs, [[0, 1], [2, 3], [4, 5]])
            with client.acquire([*hashes, b"\0" * 32]) as leases:
                blocks = [[7, 6], [5, -1], [-1, 4]]
                for layer in range(LAYERS):
                    self.assertEqual(leases.load(target.slabs, blocks, layers=range(layer, layer + 1)), 3)
                    for into, out_of in [(7, 0), (6, 1), (5, 2), (4, 5)]:
                        self.assertEqual(target.block(layer, into), source.block(layer, out_of))
                        for later in range(layer + 1, LAYERS):
                            self.assertEqual(target.block(later, into), bytes(BLOCK_BYTES), "no layer comes before its turn")
                for untouched in [0, 1, 2, 3]:
                    self.assertEqual(target.blocks(untouched), [bytes(BLOCK_BYTES)] * LAYERS)
                self.assertEqual(leases.load(target.slabs, [[0, 1], [2, 3], [4, 5]]), 3, "all layers")
                self.assertEqual(target.layers[0][: 6 * BLOCK_BYTES], source.layers[0][: 6 * BLOCK_BYTES])
                for wrong in (range(0, LAYERS + 1), range(2, 1), range(0, 3, 2), range(-1, 1)):
                    self.raises("usage", leases.load, target.slabs, blocks, layers=wrong)
                for wrong_blocks in ([[0, 1]], [[0, 1], [2], [4, 5]], [[0, 1], [2, 8], [4, 5]]):
                    self.raises("usage", leases.load, target.slabs, wrong_blocks)
                # A block that is deleted on the way: those before it count, it and those behind it do not.
                delete_namespace(os.path.join(self.folder, "kvtier.sock"), client.namespace)
                self.assertEqual(leases.load(target.slabs, blocks, layers=range(0, 1)), 0)
            self.raises("closed", leases.load, target.slabs, blocks)

    def test_a_full_daemon_says_so(self) -> None:
        self.serve()
        count = 3_000
        hashes, engine = chain("too many", count), Engine(count)
        with self.client() as client, client.acquire([]) as nothing:
            self.assertEqual((len(nothing), nothing.miss), (0, None))
            outcomes = client.store(hashes[:1_000], engine.slabs, [[block] for block in range(1_000)])
            self.assertEqual(outcomes, ["inserted"] * 1_000)
            # What is leased stays; there is no disk for it to go to.
            leases = client.acquire(hashes[:1_000])
            outcomes = client.store(
                hashes[1_000:], engine.slabs, [[block] for block in range(2_000)], parent=hashes[999], depth=1_000
            )
            self.assertEqual(set(outcomes) - {"inserted", "full"}, set())
            self.assertTrue(all(lease.is_current() for lease in leases))
            leases.release()

    def test_what_makes_no_sense_is_refused_before_anything_is_done(self) -> None:
        self.serve()
        hashes, engine = chain("a", 2), Engine(4)
        with self.client(chunk=2) as client:
            for blocks in [[[0, 1]], [[0, 1], [2]], [[0, 1], [2, 4]], [[0, 1], [2, -2]], [[0, 1], [2, 3], [0, 1]]]:
                self.raises("usage", client.load, hashes, engine.slabs, blocks)
                self.raises("usage", client.store, hashes, engine.slabs, blocks)
            self.raises("usage", client.store, hashes, engine.slabs, [[0, 1], [2, -1]])
            self.raises("usage", client.lookup, [b"short"])
            with self.assertRaises(TypeError):
                client.lookup(["text"])  # type: ignore[list-item]
            few = kvtier.Slabs(engine.layers[:2], block_bytes=BLOCK_BYTES)
            self.raises("usage", client.store, hashes, few, [[0, 1], [2, 3]])
            odd = kvtier.Slabs(engine.layers, block_bytes=BLOCK_BYTES - 1)
            self.raises("usage", client.store, hashes, odd, [[0, 1], [2, 3]])
            read_only = kvtier.Slabs([bytes(slab) for slab in engine.layers], block_bytes=BLOCK_BYTES, writable=False)
            self.raises("usage", client.load, hashes, read_only, [[0, 1], [2, 3]])
            self.assertEqual(client.store(hashes, read_only, [[0, 1], [2, 3]]), ["inserted"] * 2)
            stores = client.stats()["stores"]
        self.assertEqual(stores["accepted"]["blocks"], 2, stores)

    def test_slabs_that_make_no_sense_are_refused(self) -> None:
        slab = bytearray(64)
        for layers, named in [
            ([], {"block_bytes": 8}),
            ([slab], {"block_bytes": 0}),
            ([slab], {"block_bytes": 65}),
            ([slab], {"block_bytes": 8, "stride": 7}),
            ([bytes(64)], {"block_bytes": 8}),
            ([(0, 64, None)], {"block_bytes": 8}),
            ([memoryview(slab)[::2]], {"block_bytes": 8}),
        ]:
            self.raises("usage", kvtier.Slabs, layers, **named)
        del layers
        with self.assertRaises(TypeError):
            kvtier.Slabs([object()], block_bytes=8)  # type: ignore[list-item]
        # A buffer that is used by slabs cannot be moved away under them.
        slabs = kvtier.Slabs([slab], block_bytes=8, stride=10)
        with self.assertRaises(BufferError):
            slab.extend(b"more")
        self.assertEqual((slabs.blocks, slabs.layers, slabs.block_bytes), (6, 1, 8))
        del slabs
        slab.extend(b"more")


if __name__ == "__main__":
    unittest.main()
