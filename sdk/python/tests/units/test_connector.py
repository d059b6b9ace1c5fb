"""The connector's two sides over a store in memory: what is loaded, what is saved, and what never is."""

import threading
import unittest

from kvtier.conformance import store as kit
from kvtier.vllm.identity import Identity
from kvtier.vllm.plan import Span
from kvtier.vllm.settings import Settings
from kvtier.vllm.store import Store, name_outside

from .rig import BLOCK_BYTES, BLOCK_TOKENS, Engine, request, step

PROMPT = list(range(65))
VALUES = list(range(1, 17))


class Loads(unittest.TestCase):
    def load(self, engine, local, name="r", prompt=PROMPT):
        """Admits a request with a local hit of so many blocks; returns its table and the failed blocks of its first step."""
        wanted = request(name, prompt)
        tokens, is_async = engine.scheduler.matched(wanted, local * BLOCK_TOKENS)
        table = list(range(1, 20))
        engine.scheduler.allocated(wanted, table, tokens)
        done = local * BLOCK_TOKENS + tokens
        self.assertEqual(is_async, engine.scheduler.load_async and tokens > 0)
        if is_async:
            return table, tokens, engine.run(step())
        return table, tokens, engine.run(step(new=[(name, table, done)], scheduled={name: len(prompt) - done}))

    def test_a_stored_block_that_straddles_the_local_hit_leaves_it_alone(self):
        for layerwise in (False, True):
            for local in range(0, 8):
                with self.subTest(local=local, layerwise=layerwise):
                    engine = Engine(factor=4, layerwise=layerwise)
                    engine.fill_store(PROMPT, VALUES)
                    for block in range(1, 20):
                        engine.memories[0].fill(block, 200)
                    table, tokens, failed = self.load(engine, local)
                    self.assertEqual((tokens, failed), (64 - local * 4, set()))
                    for number in range(16):
                        wanted = VALUES[number] if number >= local else 200
                        self.assertEqual(engine.memories[0].values(table[number]), {wanted}, number)
                    self.assertEqual(engine.memories[0].values(table[16]), {200}, "beyond the load")
                    engine.close()

    def test_where_blocks_are_encoded_one_that_was_there_in_part_is_not_offered(self):
        for is_lossy, first in ((False, 1), (True, 2)):
            engine = Engine(factor=4)
            engine.scheduler.is_lossy = is_lossy
            wanted = request("r", PROMPT)
            engine.scheduler.matched(wanted, 5 * BLOCK_TOKENS)
            table = list(range(1, 20))
            engine.scheduler.allocated(wanted, table, 0)
            orders = engine.scheduler.build(step(new=[("r", table, 20)], scheduled={"r": 45}))
            self.assertEqual([save.span.first for save in orders.saves], [first])
            self.assertEqual(len(orders.saves[0].span.keys), 4 - first, "up to the last whole one")
            engine.close()

    def test_failed_blocks_are_told_in_the_same_step_and_only_those(self):
        for layerwise in (False, True):
            engine = Engine(factor=4, layerwise=layerwise)
            engine.fill_store(PROMPT, VALUES)
            keys = list(engine.ranks[0].client._blocks)
            table_of_found = engine.ranks[0].client._blocks
            wanted = request("r", PROMPT)
            tokens, _ = engine.scheduler.matched(wanted, 5 * BLOCK_TOKENS)
            del table_of_found[keys[1]]
            table = list(range(1, 20))
            engine.scheduler.allocated(wanted, table, tokens)
            failed = engine.run(step(new=[("r", table, 64)], scheduled={"r": 1}))
            self.assertEqual(failed, set(table[5:16]), "block 4 was computed before: it is not among them")
            self.assertEqual(engine.run(step()), set(), "each once")
            engine.close()

    def test_a_load_between_steps_ends_once_with_its_failures(self):
        engine = Engine(load_async=True)
        engine.fill_store(PROMPT, VALUES)
        engine.daemon.faults.torn = 1.0
        table, tokens, failed = self.load(engine, 0)
        self.assertEqual((tokens, failed), (64, set()))
        worker = engine.workers[0]
        worker._threads.submit(lambda: None).result()
        self.assertEqual(worker.arrived(), {"r"})
        self.assertEqual(worker.bad_blocks(), set(table[:16]))
        self.assertEqual((worker.arrived(), worker.bad_blocks()), (set(), set()))
        engine.close()

    def test_what_one_rank_lacks_no_rank_loads(self):
        engine = Engine(ranks=2)
        engine.fill_store(PROMPT, VALUES)
        del engine.ranks[1].client._blocks[request("r", PROMPT).block_hashes[3]]
        self.assertEqual(engine.scheduler.matched(request("r", PROMPT), 0), (12, False))

    def test_tiers_are_those_of_the_slowest_rank(self):
        engine = Engine(ranks=2)
        engine.fill_store(PROMPT, VALUES)
        engine.ranks[1].client._blocks[request("r", PROMPT).block_hashes[0]].tier = "disk"
        wanted = request("r", PROMPT)
        engine.scheduler.matched(wanted, 0)
        self.assertEqual(engine.scheduler.sources(wanted, 64), {"disk": 4, "host": 60})

    def test_an_adapter_or_embeddings_keep_a_request_out(self):
        engine = Engine()
        engine.fill_store(PROMPT, VALUES)
        for name in ("lora_request", "prompt_embeds", "skip_reading_prefix_cache"):
            wanted = request("r", PROMPT)
            setattr(wanted, name, object())
            self.assertEqual(engine.scheduler.matched(wanted, 0), (0, False), name)


class Saves(unittest.TestCase):
    def admit(self, engine, name, tokens, table, local=0):
        wanted = request(name, tokens)
        found, _ = engine.scheduler.matched(wanted, local)
        engine.scheduler.allocated(wanted, table, found)
        return wanted

    def test_a_stored_block_waits_for_its_last_engine_block(self):
        for layerwise in (False, True):
            engine = Engine(factor=4, layerwise=layerwise)
            table = list(range(1, 18))
            self.admit(engine, "r", PROMPT, table)
            done, kept = 0, []
            for tokens in (10, 5, 1, 20, 28, 1):
                output = (
                    step(new=[("r", table, 0)], scheduled={"r": tokens})
                    if done == 0
                    else step(cached=[("r", None, done, False)], scheduled={"r": tokens})
                )
                touched = range(done // 4, -(-(done + tokens) // 4))
                engine.run(output, {table[block]: VALUES[block] for block in touched if block < 16})
                done += tokens
                kept.append(len(engine.ranks[0].client._blocks))
            self.assertEqual(kept, [0, 0, 1, 2, 4, 4])
            chain = request("r", PROMPT).block_hashes
            blocks = engine.ranks[0].client._blocks
            self.assertEqual(list(blocks), [chain[3], chain[7], chain[11], chain[15]])
            self.assertEqual([(entry.parent, entry.depth) for entry in blocks.values()], [(None, 0), (chain[3], 1), (chain[7], 2), (chain[11], 3)])
            for number, entry in enumerate(blocks.values()):
                whole = b"".join(bytes([VALUES[number * 4 + part]]) * 16 for part in range(4))
                self.assertEqual(entry.layers[0], whole)
            engine.close()

    def test_beside_a_local_hit_only_whole_blocks_of_finished_steps_are_stored(self):
        chain = request("r", PROMPT).block_hashes
        table = list(range(1, 18))
        for layerwise in (False, True):
            for local in range(1, 8):
                with self.subTest(local=local, layerwise=layerwise):
                    engine = Engine(factor=4, layerwise=layerwise)
                    memory, stored = engine.memories[0], engine.ranks[0].client._blocks
                    for block in range(local):
                        memory.fill(table[block], VALUES[block])
                    self.admit(engine, "r", PROMPT, table, local * BLOCK_TOKENS)
                    done, first = local * BLOCK_TOKENS, local // 4
                    self.watch_end(engine.workers[0], stored)
                    for number, tokens in enumerate((3, 1, 7, 10, 1, 15, len(PROMPT))):
                        tokens = min(tokens, len(PROMPT) - done)
                        new, cached = ([("r", table, done)], []) if number == 0 else ([], [("r", None, done, False)])
                        touched = range(done // BLOCK_TOKENS, min(16, -(-(done + tokens) // BLOCK_TOKENS)))
                        done += tokens
                        # A block that the step does not fill holds something else until its last token is computed.
                        values = {table[block]: VALUES[block] if (block + 1) * BLOCK_TOKENS <= done else 100 + block for block in touched}
                        engine.run(step(new=new, cached=cached, scheduled={"r": tokens}), values)
                        whole = range(first, done // (4 * BLOCK_TOKENS))
                        self.assertEqual(list(stored), [chain[4 * block + 3] for block in whole], f"{done} tokens")
                        for block, entry in zip(whole, stored.values()):
                            for layer in range(len(memory.layers)):
                                parts = (VALUES[4 * block + part] + 16 * layer for part in range(4))
                                self.assertEqual(entry.layers[layer], b"".join(bytes([part]) * BLOCK_BYTES for part in parts))
                    self.assertEqual((done, len(stored)), (65, 4 - first))
                    engine.close()

    def watch_end(self, worker, stored):
        """From now on, each step has to leave the store as it was until it ends."""
        begin, end = worker.begin, worker.end

        def begun():
            self.before = list(stored)
            begin()

        def ended():
            self.assertEqual(list(stored), self.before, "stored before its step was done")
            end()

        worker.begin, worker.end = begun, ended

    def test_what_was_computed_from_a_failed_load_is_not_saved(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                engine = Engine(ranks=ranks)
                engine.fill_store(PROMPT[:33], VALUES)
                stored = len(engine.ranks[0].client._blocks)
                self.assertEqual(stored, 8)
                engine.daemon.faults.lost = 1.0
                table = list(range(1, 18))
                self.admit(engine, "r", PROMPT, table)
                failed = engine.run(step(new=[("r", table, 32)], scheduled={"r": 33}), {block: 99 for block in table[8:16]})
                self.assertEqual(failed, set(table[:8]))
                self.assertEqual(len(engine.ranks[0].client._blocks), stored, "garbage was saved")
                # vLLM starts again from the first failed block.
                engine.daemon.faults.lost = 0.0
                values = {table[block]: VALUES[block] for block in range(16)}
                self.assertEqual(engine.run(step(cached=[("r", None, 0, False)], scheduled={"r": 65}), values), set())
                for rank in engine.ranks:
                    self.assertEqual([entry.layers[0][0] for entry in rank.client._blocks.values()], VALUES)

    def test_a_request_that_shares_a_block_with_a_failed_load_saves_nothing_either(self):
        engine = Engine()
        engine.fill_store(PROMPT[:33], VALUES)
        engine.daemon.faults.lost = 1.0
        table = list(range(1, 18))
        self.admit(engine, "r", PROMPT, table)
        other = PROMPT[:32] + [7] * 9
        shared = table[:8] + [30, 31, 32]
        self.admit(engine, "s", other, shared, local=32)
        output = step(new=[("r", table, 32), ("s", shared, 32)], scheduled={"r": 33, "s": 9})
        engine.run(output, {30: 99, 31: 99})
        self.assertEqual(len(engine.ranks[0].client._blocks), 8)
        # The next step comes while block 0 is computed again: what it computes from the others is garbage still.
        engine.run(
            step(cached=[("r", None, 0, False), ("s", None, 32, False)], scheduled={"r": 4, "s": 9}), {table[0]: VALUES[0], 30: 98, 31: 98}
        )
        self.assertEqual(len(engine.ranks[0].client._blocks), 8)
        values = {table[block]: VALUES[block] for block in range(1, 16)}
        engine.run(step(cached=[("r", None, 4, False)], scheduled={"r": 61}), values)
        engine.run(step(cached=[("s", None, 32, False)], scheduled={"s": 9}), {30: 50, 31: 51})
        saved = [entry.layers[0][0] for entry in engine.ranks[0].client._blocks.values()]
        self.assertEqual(saved[8:], VALUES[8:] + [50, 51])

    def test_blocks_that_came_from_the_store_are_not_offered_again(self):
        engine = Engine()
        engine.fill_store(PROMPT[:33], VALUES)
        table = list(range(1, 18))
        self.admit(engine, "r", PROMPT, table)
        engine.run(step(new=[("r", table, 32)], scheduled={"r": 33}), {table[block]: VALUES[block] for block in range(8, 16)})
        (save,) = engine.orders.saves
        self.assertEqual((save.span.first, len(save.rows)), (8, 8))

    def test_a_preempted_request_saves_from_its_new_blocks(self):
        engine = Engine()
        table = list(range(1, 18))
        self.admit(engine, "r", PROMPT, table)
        engine.run(step(new=[("r", table, 0)], scheduled={"r": 10}), {1: VALUES[0], 2: VALUES[1]})
        again = list(range(20, 37))
        self.admit(engine, "r", PROMPT, again)
        done = 8
        values = {again[block]: VALUES[block] for block in range(2, 16)}
        engine.run(step(cached=[("r", again, done, True)], scheduled={"r": 57}), values)
        self.assertEqual([entry.layers[0][0] for entry in engine.ranks[0].client._blocks.values()], VALUES)
        self.assertEqual([engine.memories[0].values(block) for block in again[:2]], [{VALUES[0]}, {VALUES[1]}])

    def test_a_finished_request_leaves_nothing_behind(self):
        engine = Engine()
        engine.fill_store(PROMPT, VALUES)
        self.admit(engine, "r", PROMPT, list(range(1, 18)))
        engine.scheduler.finished("r")
        self.assertEqual(engine.scheduler.build(step()).loads, [], "cancelled before its step was built")
        self.assertEqual((engine.scheduler._running, engine.scheduler._matches, engine.scheduler._asked), ({}, {}, set()))


class Stepped:
    """A rank's store whose layers arrive one by one, each when it is let in."""

    def __init__(self, rank):
        self.rank, self.layers, self.loaded = rank, threading.Semaphore(0), []

    def __getattr__(self, name):
        return getattr(self.rank, name)

    def load_layer(self, leases, rows, layer):
        self.layers.acquire()
        self.loaded.append(layer)
        return self.rank.load_layer(leases, rows, layer)


class LayersOneByOne(unittest.TestCase):
    def begin(self):
        engine = Engine(factor=4, layerwise=True)
        engine.fill_store(PROMPT, VALUES)
        stepped = Stepped(engine.ranks[0])
        engine.workers[0].store = stepped
        wanted = request("r", PROMPT)
        tokens, _ = engine.scheduler.matched(wanted, 0)
        table = list(range(1, 20))
        engine.scheduler.allocated(wanted, table, tokens)
        worker = engine.workers[0]
        worker.bind(engine.scheduler.build(step(new=[("r", table, 64)], scheduled={"r": 1})))
        worker.begin()
        return engine, worker, stepped, table

    def test_attention_waits_for_its_layer_and_for_no_other(self):
        engine, worker, stepped, table = self.begin()
        for number, name in enumerate(engine.memories[0].layout.names):
            stepped.layers.release()
            worker.wait_layer(name)
            self.assertEqual(stepped.loaded, list(range(number + 1)), "no layer behind it has come")
            layer = engine.memories[0].layers[number]
            for block, value in zip(table, VALUES):
                self.assertEqual(layer[block * BLOCK_BYTES], (value + 16 * number) % 256)
        worker.end()
        self.assertEqual(worker.bad_blocks(), set())
        engine.close()

    def test_a_block_that_is_lost_behind_the_first_layers_fails_in_this_step(self):
        engine, worker, stepped, table = self.begin()
        stepped.layers.release()
        worker.wait_layer(engine.memories[0].layout.names[0])
        engine.daemon.faults.torn = 1.0
        for name in engine.memories[0].layout.names[1:]:
            stepped.layers.release()
            worker.wait_layer(name)
        worker.end()
        self.assertEqual(worker.bad_blocks(), set(table[:16]))
        self.assertEqual(stepped.loaded, [0, 1], "a load that has failed is not gone on with")
        engine.close()


class Misses(unittest.TestCase):
    def test_a_request_that_is_looked_up_again_and_again_misses_all_that_is_not_there_once(self):
        daemon = kit.Daemon()
        span = Span(3, tuple(bytes([number] * 32) for number in range(1, 7)), bytes(32))
        asked = []
        with kit.install(daemon):
            store = Store(Identity({"weights": bytes(32), "layers": 1}, BLOCK_BYTES, "toy", BLOCK_TOKENS), Settings(), "test")
            slabs = kit.Slabs([bytearray(BLOCK_BYTES)], block_bytes=BLOCK_BYTES)
            store.client.store(span.keys[:2], slabs, [[0], [0]], parent=span.parent, depth=3)
            acquire = store.client.acquire

            def watched(hashes, *, parent=None, depth=0):
                asked.append((tuple(hashes), parent, depth))
                return acquire(hashes, parent=parent, depth=depth)

            store.client.acquire = watched
            for request, again in (("a", 3), ("b", 2), ("a", 1)):
                for _ in range(again):
                    self.assertEqual(store.find(span, request), ["host"] * 2)
            missed = (span.keys[2:], span.keys[1], 5)
            self.assertEqual(asked, [missed] * 3, "once each time that it comes")
            store.client.store(span.keys[2:3], slabs, [[0]], parent=span.keys[1], depth=5)
            self.assertEqual(store.find(span, "a"), ["host"] * 3)
            self.assertEqual(asked[3:], [(span.keys[3:], span.keys[2], 6)], "what is still not there")


class Names(unittest.TestCase):
    def test_the_daemon_hears_the_name_that_the_sender_knows(self):
        self.assertEqual(name_outside("chatcmpl-1-0a1b2c3d"), "chatcmpl-1")
        self.assertEqual(name_outside("chatcmpl-1"), "chatcmpl-1")
        self.assertEqual(name_outside("x" * 100 + "-0a1b2c3d"), "x" * 64)
        self.assertEqual(name_outside("x" * 63 + "ö"), "x" * 63, "no half letters")


if __name__ == "__main__":
    unittest.main()
