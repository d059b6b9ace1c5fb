"""An engine's memory, requests and step outputs, in small, for the tests of this folder."""

import hashlib
from types import SimpleNamespace

from kvtier.conformance import store as kit
from kvtier.vllm import layout
from kvtier.vllm.plan import Chunks
from kvtier.vllm.scheduler import Scheduler
from kvtier.vllm.worker import Worker

LAYERS = 3
BLOCK_BYTES = 16
BLOCK_TOKENS = 4
BLOCKS = 64


def hashes(tokens, size=BLOCK_TOKENS):
    """Chained hashes of full blocks."""
    chain, parent = [], b"root"
    for at in range(0, len(tokens) - size + 1, size):
        parent = hashlib.sha256(parent + repr(tokens[at : at + size]).encode()).digest()
        chain.append(parent)
    return chain


def request(name, tokens):
    return SimpleNamespace(request_id=name, block_hashes=hashes(tokens), num_tokens=len(tokens))


class Memory:
    """Slabs of an engine: `LAYERS` runs of `BLOCKS` blocks."""

    def __init__(self):
        self.layers = [bytearray(BLOCKS * BLOCK_BYTES) for _ in range(LAYERS)]
        slabs = tuple(kit.tuple_of(layer) for layer in self.layers)
        names = tuple(f"layer.{number}" for number in range(LAYERS))
        self.layout = layout.Layout(names, slabs, BLOCKS, BLOCK_TOKENS, BLOCK_BYTES, BLOCK_BYTES, 1, 2, "uint8", "toy", "cpu", "toy")

    def fill(self, block, value):
        for number, layer in enumerate(self.layers):
            layer[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes([(value + 16 * number) % 256]) * BLOCK_BYTES

    def values(self, block):
        """A set of the values that a block's layers have; one when it is whole."""
        found = set()
        for number, layer in enumerate(self.layers):
            found |= {(byte - 16 * number) % 256 for byte in layer[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]}
        return found


class Rank:
    """One rank's store: kit client, as `kvtier.vllm.store.Store` is to a daemon."""

    def __init__(self, memory, daemon, factor=1, rank=0):
        manifest = kit.Manifest(weights=bytes(32), layers=LAYERS, tensor_parallel=(rank, 2))
        with kit.install(daemon):
            self.client = kit.Client(manifest=manifest, form=kit.Opaque(BLOCK_BYTES * factor, "toy"))
        self.slabs = kit.Slabs(memory.layout.slabs, block_bytes=BLOCK_BYTES)

    def find(self, span, name):
        return self.client.lookup(span.keys).tiers

    def load(self, name, span, rows):
        return len(self.client.load(span.keys, self.slabs, rows).tiers)

    def lease(self, name, span):
        return self.client.acquire(span.keys)

    def load_layer(self, leases, rows, layer):
        return leases.load(self.slabs, rows[: len(leases)], layers=range(layer, layer + 1))

    def release(self, leases):
        leases.release()

    def save(self, span, rows):
        return self.client.store(span.keys, self.slabs, rows, parent=span.parent, depth=span.first).count("inserted")

    def reserve(self, span):
        return self.client.reserve(span.keys, parent=span.parent, depth=span.first)

    def commit(self, places):
        return places.commit()


def step(new=(), cached=(), scheduled=None):
    """A scheduler's output. `new`: (name, table, computed). `cached`: (name, new blocks or None, computed, resumed)."""
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=name, block_ids=(list(table),), num_computed_tokens=done) for name, table, done in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached],
            new_block_ids=[(list(blocks),) if blocks else None for _, blocks, *_ in cached],
            num_computed_tokens=[done for *_, done, _ in cached],
            resumed_req_ids={name for name, *_, resumed in cached if resumed},
        ),
        num_scheduled_tokens=scheduled or {},
    )


class Engine:
    """A scheduler's side and a worker's side over one store."""

    def __init__(self, factor=1, ranks=1, load_async=False, layerwise=False, daemon=None):
        self.daemon = daemon or kit.Daemon()
        self.memories = [Memory() for _ in range(ranks)]
        self.ranks = [Rank(memory, self.daemon, factor, number) for number, memory in enumerate(self.memories)]
        self.workers = [Worker(memory.layout, rank, layerwise=layerwise) for memory, rank in zip(self.memories, self.ranks)]
        self.scheduler = Scheduler(Chunks(BLOCK_TOKENS, factor), load_async=load_async)
        self.scheduler.attach(self.ranks)

    def run(self, output, compute=()):
        """A step on every rank; `compute`: {block: value} that the forward pass writes. Returns the blocks that failed to load."""
        orders = self.scheduler.build(output)
        failed, outcomes = set(), []
        for memory, worker in zip(self.memories, self.workers):
            worker.bind(orders)
            worker.begin()
            for name in memory.layout.names:
                worker.wait_layer(name)
            for block, value in dict(compute).items():
                memory.fill(block, value)
            for name in memory.layout.names:
                worker.save_layer(name)
            worker.end()
            failed |= worker.bad_blocks()
            outcomes.append(worker.outcome(orders.step))
        outcome = outcomes[0]
        for other in outcomes[1:]:
            outcome = outcome.join(other)
        self.scheduler.confirmed(outcome, failed)
        self.orders = orders
        return failed

    def close(self):
        for worker in self.workers:
            worker.close()

    def fill_store(self, tokens, values, name="filler"):
        """Computes a prompt from nothing, in blocks from 40 on, so that the store has it: block `i` of the request has `values[i]`."""
        count = len(tokens) // BLOCK_TOKENS
        table = list(range(40, 40 + count + 1))
        filler = request(name, tokens)
        self.scheduler.matched(filler, 0)
        self.scheduler.allocated(filler, table, 0)
        self.run(step(new=[(name, table, 0)], scheduled={name: len(tokens)}), {table[i]: values[i] for i in range(count)})
        self.scheduler.finished(name)
