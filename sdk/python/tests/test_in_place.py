"""Blocks read and written where they lie."""

import gc
import sys
import unittest
from typing import Any

import kvtier
from rig import BLOCK_BYTES, LAYERS, Case, Engine, chain, delete_namespace

BYTES = BLOCK_BYTES * LAYERS


class Leases(Case):
    def store(self, client: kvtier.Client, hashes: list[bytes]) -> Engine:
        engine = Engine(len(hashes))
        engine.fill(9)
        outcomes = client.store(hashes, engine.slabs, [[block] for block in range(len(hashes))])
        self.assertEqual(outcomes, ["inserted"] * len(hashes))
        return engine

    def held(self, client: kvtier.Client) -> int:
        client.give_back()
        held: int = client.stats()["leases"]["count"]
        return held

    def test_a_block_is_read_where_it_lies(self) -> None:
        self.serve()
        hashes = chain("a", 3)
        with self.client() as client:
            engine = self.store(client, hashes)
            with client.acquire([*hashes, b"\0" * 32]) as leases:
                self.assertEqual((len(leases), leases.miss), (3, "never_stored"))
                for index, lease in enumerate(leases):
                    view = memoryview(lease)
                    self.assertEqual((view.readonly, view.format, view.shape), (True, "B", (BYTES,)))
                    self.assertEqual(bytes(view), b"".join(engine.blocks(index)))
                    self.assertEqual(bytes(lease.layer(1)), engine.block(1, index))
                    self.assertEqual((lease.tier, lease.nbytes, len(lease)), ("host", BYTES, BYTES))
                    self.assertTrue(lease.is_current())
                    with self.assertRaises(TypeError):
                        view[0] = 1
                with self.assertRaises(IndexError):
                    leases[0].layer(LAYERS)
                with self.assertRaises(IndexError):
                    leases[3]
                self.assertEqual(leases[-1].nbytes, BYTES)
                self.assertEqual(self.held(client), 3)
                del view, lease
            self.assertEqual(self.held(client), 0)
            self.raises("closed", leases[0].is_current)
            self.raises("closed", memoryview, leases[0])

    def test_what_looks_at_a_block_keeps_its_lease(self) -> None:
        self.serve()
        hashes = chain("a", 2)
        with self.client() as client:
            engine = self.store(client, hashes)
            with client.acquire(hashes) as leases:
                view = leases[0].layer(2)
            self.assertEqual(self.held(client), 1)
            client.close()
            self.assertEqual(bytes(view), engine.block(2, 0), "mapped still")
            del leases, view
        with self.client() as other:
            self.assertEqual(self.held(other), 0)

    def test_a_block_that_changes_hands_is_not_current(self) -> None:
        daemon = self.serve()
        hashes, engine = chain("a", 2), Engine(2)
        with self.client() as client:
            self.store(client, hashes)
            with client.acquire(hashes) as leases:
                view = memoryview(leases[0])
                self.assertTrue(leases[0].is_current())
                delete_namespace(daemon.socket, client.namespace)
                view.tobytes()
                self.assertFalse(leases[0].is_current())
                self.assertFalse(leases[1].is_current())
            loaded = client.load(hashes, engine.slabs, [[0], [1]])
            self.assertEqual(len(loaded), 0)
            self.assertIsNotNone(loaded.miss)
            self.assertEqual(engine.blocks(0), [bytes(BLOCK_BYTES)] * LAYERS)

    def test_numpy_sees_the_same_memory_by_both_protocols(self) -> None:
        self.serve()
        hashes = chain("a", 1)
        self.assertNotIn("numpy", sys.modules)
        with self.client() as client:
            engine = self.store(client, hashes)
            self.assertNotIn("numpy", sys.modules, "imported by us")
            import numpy

            with client.acquire(hashes) as leases:
                buffer = numpy.frombuffer(memoryview(leases[0]), dtype=numpy.uint8)
                shared = numpy.from_dlpack(leases[0])
                self.assertEqual(buffer.ctypes.data, shared.ctypes.data)
                self.assertEqual(shared.tobytes(), b"".join(engine.blocks(0)))
                self.assertEqual((shared.shape, shared.dtype), ((BYTES,), numpy.uint8))
                self.assertFalse(shared.flags.writeable)
                self.assertEqual(leases[0].__dlpack_device__(), (1, 0))
            self.assertEqual(self.held(client), 1)
            del buffer
            self.assertEqual(self.held(client), 1)
            del shared
            self.assertEqual(self.held(client), 0)
            # A capsule that nobody takes lets go as well, of either version.
            with client.acquire(hashes) as leases:
                capsules = [leases[0].__dlpack__(), leases[0].__dlpack__(max_version=(1, 0))]
                self.assertIn("dltensor_versioned", repr(capsules[1]))
                with self.assertRaises(NotImplementedError):
                    leases[0].__dlpack__(copy=True)
            self.assertEqual(self.held(client), 1)
            del capsules
            self.assertEqual(self.held(client), 0)

    def test_slabs_of_arrays(self) -> None:
        self.serve()
        import numpy

        class OnlyDlpack:
            """As torch's tensors are: no buffer protocol."""

            def __init__(self, array: "numpy.typing.NDArray[numpy.uint16]", knows_versions: bool) -> None:
                self.array, self.knows_versions = array, knows_versions

            def __dlpack__(self, **named: object) -> object:
                if named and not self.knows_versions:
                    raise TypeError("unexpected keyword")
                return self.array.__dlpack__(**named)  # type: ignore[arg-type]

        shape = (4, 2, 16, 8)
        rng = numpy.random.default_rng(7)
        arrays = [rng.integers(0, 1 << 16, shape, dtype=numpy.uint16) for _ in range(LAYERS)]
        block_bytes = 2 * 2 * 16 * 8
        form = kvtier.Opaque(layer_bytes=block_bytes, layout="arrays")
        from rig import manifest

        with kvtier.Client(self.daemons[0].socket, manifest=manifest(), form=form) as client:
            source = kvtier.Slabs([OnlyDlpack(array, index > 0) for index, array in enumerate(arrays)], block_bytes=block_bytes)
            self.assertEqual(source.blocks, 4)
            hashes = chain("arrays", 4)
            self.assertEqual(client.store(hashes, source, [[3], [2], [1], [0]]), ["inserted"] * 4)
            copies = [numpy.zeros(shape, dtype=numpy.uint16) for _ in range(LAYERS)]
            # By the buffer protocol, and by address.
            layers: list[Any] = [*copies[:2], (copies[2].ctypes.data, copies[2].nbytes, copies[2])]
            target = kvtier.Slabs(layers, block_bytes=block_bytes)
            self.assertEqual(len(client.load(hashes, target, [[0], [1], [2], [3]])), 4)
        for array, copied in zip(arrays, copies):
            self.assertTrue((array[::-1] == copied).all())
        with self.assertRaises(BufferError):
            kvtier.Slabs([OnlyDlpack(arrays[0][:, ::-1], True)], block_bytes=block_bytes)
        arrays[0].flags.writeable = False
        self.raises("usage", kvtier.Slabs, [OnlyDlpack(arrays[0], True)], block_bytes=block_bytes)


class Places(Case):
    def reserved(self, client: kvtier.Client) -> int:
        count: int = client.stats()["reservations"]
        return count

    def test_a_block_is_written_where_the_daemon_takes_it(self) -> None:
        self.serve()
        hashes, engine = chain("a", 2), Engine(2)
        engine.fill(5)
        with self.client() as client, self.client() as other:
            with client.reserve(hashes) as places:
                self.assertEqual([place.state for place in places], ["reserved"] * 2)
                self.assertEqual(len(places[0]), BYTES)
                for index, place in enumerate(places):
                    for layer in range(LAYERS):
                        place.layer(layer)[:] = engine.block(layer, index)
                with self.assertRaises(IndexError):
                    places[0].layer(LAYERS)
                self.assertEqual(len(other.lookup(hashes)), 0, "nobody sees it before the commit")
                self.assertEqual([place.state for place in other.reserve(hashes)], ["pending"] * 2)
                self.assertEqual(places.commit(), ["inserted"] * 2)
                self.assertEqual(places.commit(), ["inserted"] * 2, "once")
                with self.assertRaises(BufferError):
                    memoryview(places[0])
            loaded = other.load(hashes, Engine(2).slabs, [[0], [1]])
            self.assertEqual(len(loaded), 2)
            with other.acquire(hashes) as leases:
                self.assertEqual([bytes(lease) for lease in leases], [b"".join(engine.blocks(block)) for block in range(2)])
            self.assertEqual([place.state for place in other.reserve(hashes)], ["present"] * 2)

    def test_an_exception_gives_places_up(self) -> None:
        self.serve()
        hashes = chain("a", 3)
        with self.client() as client:
            with self.assertRaises(ZeroDivisionError), client.reserve(hashes) as places:
                memoryview(places[0])[:] = bytes(BYTES)
                self.assertEqual(self.reserved(client), 3)
                1 // 0
            self.assertEqual(self.reserved(client), 0)
            self.assertEqual([place.state for place in places], ["abandoned"] * 3)
            self.raises("usage", places.commit)
            with self.assertRaises(BufferError):
                memoryview(places[0])
            self.assertEqual(len(client.lookup(hashes)), 0)
            # Without the context too, when the last of it goes.
            places = client.reserve(hashes)
            self.assertEqual(self.reserved(client), 3)
            del places
            gc.collect()
            self.assertEqual(self.reserved(client), 0)

    def test_nothing_looks_at_a_place_that_is_committed(self) -> None:
        self.serve()
        hashes = chain("a", 1)
        with self.client() as client:
            with client.reserve(hashes) as places:
                view = memoryview(places[0])
                view[:] = bytes(BYTES)
                with self.assertRaises(BufferError):
                    places.commit()
                view.release()
                self.assertEqual(places.commit(), ["inserted"])
            # Places that are given up while something looks at them are kept until nothing does.
            with client.reserve(chain("b", 1)) as places:
                view = memoryview(places[0])
            self.assertEqual(self.reserved(client), 1)
            view[:] = b"\1" * BYTES
            view.release()
            self.assertEqual(self.reserved(client), 0)

    def test_more_places_than_the_staging_memory_has(self) -> None:
        self.serve()
        hashes = chain("a", 1_100)
        with self.client() as client, client.reserve(hashes) as places:
            states = [place.state for place in places]
            self.assertEqual(len(states), 1_100)
            count = states.index("full")
            self.assertGreater(count, 0)
            self.assertEqual(set(states[:count]) | set(states[count:]), {"reserved", "full"})
            self.assertEqual(len(places[count]), 0)


if __name__ == "__main__":
    unittest.main()
