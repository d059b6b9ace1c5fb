"""A client of kvtier's daemon, written from docs/protocol.md with the standard library alone. Images are `raw16`; one thread, one call at a time."""

import array
import hashlib
import json
import mmap
import os
import socket
import struct

from xxh3 import xxh3

PAGE, RAW16 = 4096, 1
EXACT = 0


class Refused(Exception):
    """The daemon has not done it: (status, sentence)."""


def pages(length):
    return -(-length // PAGE) * PAGE


def field(data):
    return struct.pack("<Q", len(data)) + data


def number(value):
    return field(struct.pack("<Q", value))


def text(value):
    return struct.pack("<I", len(value.encode())) + value.encode()


def batch(items):
    return struct.pack("<I", len(items)) + b"".join(items)


def run(blocks):
    """Consecutive blocks, each (depth, parent hash or 32 zero bytes, hash)."""
    return struct.pack("<I32s", blocks[0][0], blocks[0][1]) + batch([block[2] for block in blocks])


def tenant(salt):
    fields = number(0) if salt is None else number(1) + field(salt.encode())
    return hashlib.sha256(field(b"kvtier.tenant.v1") + fields).digest()


def chain(namespace, block_tokens, tokens):
    blocks, parent = [], b""
    for at in range(0, len(tokens) - block_tokens + 1, block_tokens):
        ids = struct.pack(f"<{block_tokens}I", *tokens[at:at + block_tokens])
        digest = hashlib.sha256(field(b"kvtier.block.v1") + field(parent) + field(namespace) + field(ids)).digest()
        blocks.append((len(blocks), parent or bytes(32), digest))
        parent = digest
    return blocks


def mapped(fd, length, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    with open(fd, "rb", buffering=0):
        return mmap.mmap(fd, length, prot=prot)


class Client:
    def __init__(self, path, name, shape, deadline_ms=30000):
        """`shape`: (layers, KV heads, head size, tokens of a block)."""
        self.shape, self.deadline_ms, self.calls, self.extents = shape, deadline_ms, 0, {}
        layers, heads, size, tokens = shape
        self.layer_bytes, self.head_bytes = 4 * heads * size * tokens, pages(176 + 12 * layers + 8)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(deadline_ms / 1000 + 5)
        self.socket.connect(path)
        reply, fd = self.call(1, struct.pack("<HHI", 1, 1, 0) + text(name))
        self.version, _, _, self.daemon, self.session, staging, _, _ = struct.unpack("<HHI16sQQII", reply)
        self.staging = mapped(fd, staging)

    def receive(self, length):
        data, fds = b"", array.array("i")
        while len(data) < length:
            more, ancillary, flags, _ = self.socket.recvmsg(length - len(data), socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            if not more or flags & socket.MSG_CTRUNC:
                raise ConnectionError("the daemon has hung up")
            data += more
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content)
        return data, fds[0] if fds else None

    def call(self, kind, body=b""):
        self.calls += 1
        self.socket.sendall(struct.pack("<4sHHIIQII", b"kvt1", kind, 0, len(body), 0, self.calls, self.deadline_ms, 0) + body)
        header, fd = self.receive(32)
        magic, answered, flags, length, status, call, _, _ = struct.unpack("<4sHHIIQII", header)
        assert (magic, answered, flags, call) == (b"kvt1", kind, 1, self.calls)
        reply, _ = self.receive(length)
        if status:
            raise Refused(status, reply.decode())
        return reply, fd

    def open(self, manifest, salt):
        request = tenant(salt) + manifest + struct.pack("<IIIII", 0, *self.shape) + text("raw16")
        self.namespace, self.number, _, self.slot_bytes = struct.unpack("<32sIIQ", self.call(2, request)[0])
        assert self.namespace == hashlib.sha256(field(b"kvtier.namespace.v1") + manifest + field(tenant(salt))).digest()
        self.parts = struct.pack("<32sQIII", self.namespace, 0, self.number, 0, RAW16)

    def extent(self, index):
        if index not in self.extents:
            reply, fd = self.call(3, struct.pack("<II", self.number, index))
            length, words, _, images, first, slots = struct.unpack("<QQQQII", reply)
            assert os.fstat(fd).st_size == length and images + slots * self.slot_bytes <= length
            self.extents[index] = (mapped(fd, length, mmap.PROT_READ), words, images, first)
        return self.extents[index]

    def lookup(self, blocks):
        reply = self.call(4, self.parts + struct.pack("<I", EXACT) + batch([block[2] for block in blocks]))[0]
        return list(reply[8:]), struct.unpack_from("<I", reply)[0]

    def acquire(self, blocks):
        """Hits as (lease, offset, generation, provenance, slot, extent, form, tier), and the reason of the miss."""
        reply = self.call(5, self.parts + struct.pack("<I", EXACT) + run(blocks))[0]
        return list(struct.iter_unpack("<QQQQIIIB3x", reply[8:])), struct.unpack_from("<I", reply)[0]

    def read(self, hit, copy):
        """What `copy` makes of the image in place; None when the slot has changed hands."""
        _, offset, generation, _, slot, extent, _, _ = hit
        memory, words, images, first = self.extent(extent)
        assert offset == images + (slot - first) * self.slot_bytes
        word = lambda: struct.unpack_from("<Q", memory, words + 8 * (slot - first))[0]
        if word() != generation:
            return None
        made = copy(memory, offset)
        return made if word() == generation else None

    def release(self, leases):
        return struct.unpack("<II", self.call(6, batch([struct.pack("<Q", lease) for lease in leases]))[0])

    def reserve(self, blocks):
        """Answers as (reservation, offset in the staging memory, code)."""
        reply = self.call(7, self.parts + struct.pack("<I", RAW16) + run(blocks))[0]
        return list(struct.iter_unpack("<QQB7x", reply[4:]))

    def write(self, offset, block, layers):
        """Seals a slot image of these layers in the staging memory."""
        depth, parent, digest = block
        key = self.namespace + digest + struct.pack("<IIQ", 0, RAW16, 0)
        header = b"kvtslot2" + struct.pack("<II", len(layers), RAW16) + key + parent + struct.pack("<II", depth, self.slot_bytes // PAGE) + bytes(40)
        for index, layer in enumerate(layers):
            seed = xxh3(0x6B76746965720001, key + struct.pack("<II", RAW16, index))
            header += struct.pack("<QI", xxh3(seed, layer), len(layer) | (index == 0) << 31)
        header += struct.pack("<Q", xxh3(0x6B76746965720002, header))
        image = header.ljust(self.head_bytes, b"\0") + b"".join(layers)
        self.staging[offset:offset + self.slot_bytes] = image.ljust(self.slot_bytes, b"\0")

    def commit(self, reservations):
        return list(self.call(8, batch([struct.pack("<Q", one) for one in reservations]))[0][4:])

    def abort(self, reservations):
        return struct.unpack("<II", self.call(9, batch([struct.pack("<Q", one) for one in reservations]))[0])

    def await_(self, block):
        return struct.unpack("<I", self.call(10, self.parts + block[2])[0])[0]

    def prefetch(self, blocks):
        return struct.unpack("<I", self.call(11, self.parts + struct.pack("<I", EXACT) + run(blocks))[0])[0]

    def pin(self, blocks, millis):
        return struct.unpack("<I", self.call(12, self.parts + struct.pack("<IQ", EXACT, millis) + run(blocks))[0])[0]

    def unpin(self, blocks):
        return struct.unpack("<I", self.call(13, self.parts + struct.pack("<I", EXACT) + batch([block[2] for block in blocks]))[0])[0]

    def delete_namespace(self):
        self.call(14, self.namespace)

    def delete_tenant(self, salt):
        return struct.unpack("<I", self.call(15, tenant(salt))[0])[0]

    def stats(self):
        return json.loads(self.call(16)[0])

    def explain(self, request=None, block=None):
        what = struct.pack("<I", 1) + text(request) if block is None else struct.pack("<I", 2) + self.parts + block[2]
        return json.loads(self.call(17, what)[0])

    def drain(self):
        self.call(18)

    def report(self, hit, miss):
        self.call(19, struct.pack("<IIQI", self.number, hit[4], hit[2], miss))

    def tag(self, request):
        self.call(20, text(request))

    def forgo(self, blocks):
        self.call(21, self.parts + run(blocks))

    def stage(self, least):
        self.staging = mapped((answer := self.call(22, struct.pack("<Q", least)))[1], struct.unpack("<Q", answer[0])[0])
