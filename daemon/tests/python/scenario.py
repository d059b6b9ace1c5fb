"""Goes through every call of the protocol but Drain, against a daemon that a test in Rust serves.

scenario.py SOCKET MANIFEST SALT RUST_BLOCKS

MANIFEST: hexadecimal bytes. The namespace has RUST_BLOCKS blocks in it from the other side, over the tokens 0, 1, 2, ...; this side stores the rest of a
chain of 12. Values of a block repeat its hash. Prints what was seen, as JSON; the other side compares it.
"""

import json
import os
import sys

from kvtier_client import Client, Refused, chain

SHAPE = (2, 1, 16, 16)
BLOCKS = 12
RESERVED, PRESENT, PENDING = 1, 2, 3
INSERTED, FAILED_CHECK, UNKNOWN = 1, 3, 4
NEVER_STORED, NAMESPACE, LEASE_LOST = 1, 3, 6
BAD_FRAME = 1
HOST = 2


def layers(client, block):
    return [block[2] * (client.layer_bytes // 32)] * SHAPE[0]


def values(client):
    """Copies the values out of an image."""
    return lambda memory, at: memory[at + client.head_bytes:at + client.head_bytes + SHAPE[0] * client.layer_bytes]


def store(client, blocks):
    answers = client.reserve(blocks)
    assert [code for _, _, code in answers] == [RESERVED] * len(blocks), answers
    for (_, offset, _), block in zip(answers, blocks):
        client.write(offset, block, layers(client, block))
    assert client.commit([reservation for reservation, _, _ in answers]) == [INSERTED] * len(blocks)


def check(client, blocks):
    hits, miss = client.acquire(blocks)
    assert (len(hits), miss) == (len(blocks), 0), (len(hits), miss)
    for hit, block in zip(hits, blocks):
        assert client.read(hit, values(client)) == b"".join(layers(client, block)), block
        assert hit[3] == 0 and hit[6] == 1 and hit[7] == HOST
    return hits


def main():
    path, manifest, salt, theirs = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    client, other = Client(path, "python", SHAPE), Client(path, "python, too", SHAPE)
    assert client.version == 1 and client.daemon == other.daemon and client.session != other.session
    for one in (client, other):
        one.open(manifest, salt)
    blocks = chain(client.namespace, SHAPE[3], range(SHAPE[3] * BLOCKS))
    known, new = blocks[:theirs], blocks[theirs:]
    # What the other side wrote is read here, in place.
    assert client.lookup(blocks) == ([HOST] * theirs, NEVER_STORED)
    check(client, known)
    client.stage(client.slot_bytes)
    assert len(client.staging) == 512 << 10, "all that a client may have"
    store(client, new[:-2])
    assert client.reserve(new[:1])[0][2] == PRESENT
    # A spoilt image is refused.
    reservation, offset, code = client.reserve(new[-2:-1])[0]
    assert code == RESERVED and other.reserve(new[-2:-1])[0][2] == PENDING
    try:
        client.stage(client.slot_bytes)
        raise AssertionError("memory in which a block is written was replaced")
    except Refused as refused:
        assert refused.args[0] == BAD_FRAME
    client.write(offset, new[-2], layers(client, new[-1]))
    client.staging[offset + client.head_bytes] ^= 1
    assert client.commit([reservation]) == [FAILED_CHECK] and client.commit([reservation]) == [UNKNOWN]
    # Given up, then written while another one waits.
    reservation = client.reserve(new[-2:-1])[0][0]
    assert client.abort([reservation, reservation]) == (1, 1)
    assert other.await_(new[-2]) == NEVER_STORED
    store(client, new[-2:])
    assert other.await_(new[-2]) == 0
    hits = check(other, blocks)
    leases = [hit[0] for hit in hits]
    assert other.release(leases) == (BLOCKS, 0) and other.release(leases) == (0, BLOCKS)
    assert client.prefetch(blocks) == BLOCKS and client.pin(blocks[:4], 60000) == 4 and client.unpin(blocks) == 4
    assert client.explain(block=blocks[3])["tier"] == "host"
    client.tag("python 1")
    foreign = [(0, bytes(32), bytes([9]) * 32)]
    assert client.acquire(foreign) == ([], NEVER_STORED)
    client.forgo(blocks[1:2])
    client.tag("")
    story = client.explain(request="python 1")["blocks"]
    assert [(one["position"], one["reason"]) for one in story] == [(0, "never_stored"), (1, "not_worth_it")], story
    try:
        client.explain(request="never heard of")
        raise AssertionError("an unknown request is explained")
    except Refused as refused:
        assert refused.args[0] == 4
    client.report(check(client, blocks)[0], LEASE_LOST)
    # Deletion: leases are lost, and what was read in place means nothing any more.
    client.open(manifest, salt + ", to be deleted")
    doomed = chain(client.namespace, SHAPE[3], range(SHAPE[3] * 2))
    store(client, doomed)
    hits = check(client, doomed)
    client.delete_namespace()
    assert [client.read(hit, values(client)) for hit in hits] == [None, None] and client.lookup(doomed) == ([], NEVER_STORED)
    store(client, doomed)
    assert client.delete_tenant(salt + ", to be deleted") == 1 and client.lookup(doomed) == ([], NEVER_STORED)
    # The memory of blocks is for reading.
    memory, words, _, _ = client.extent(0)
    try:
        memory[words] = 1
        raise AssertionError("the arena was written")
    except TypeError:
        pass
    stats = client.stats()
    print(json.dumps({"pid": os.getpid(), "last": blocks[-1][2].hex(), "stats": stats}))


main()
