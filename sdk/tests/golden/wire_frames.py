#!/usr/bin/env python3
"""Golden frames of the wire protocol, packed from docs/protocol.md with struct alone.

    python3 sdk/tests/golden/wire_frames.py            prints them
    python3 sdk/tests/golden/wire_frames.py --write    writes wire_frames.txt beside this file
    python3 sdk/tests/golden/wire_frames.py --check    exits 1 when the file differs
"""
import pathlib
import struct
import sys


def u16(*values):
    return struct.pack(f"<{len(values)}H", *values)


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values):
    return struct.pack(f"<{len(values)}Q", *values)


def text(value):
    return u32(len(value.encode())) + value.encode()


def batch(items):
    return u32(len(items)) + b"".join(items)


def field(data):
    return u64(len(data)) + data


def number(value):
    return field(u64(value))


IDS = bytes(range(32))
A, B, C, D, E, F = 11, 12, 13, 14, 15, 16
NAME = "t\u00e4st"
JSON = b'{"version":1}\n'
PROVENANCE, AT_LEAST_KC4VT4 = 5, 5

hashes = batch([bytes([byte]) * 32 for byte in (1, 2, 3)])
parts = IDS + u64(A) + u32(B, C, D)
run = u32(7) + IDS + hashes
lookup = parts + u32(AT_LEAST_KC4VT4) + hashes
acquire = parts + u32(AT_LEAST_KC4VT4) + run
ids = [u64(0x0102030405060700 + index) for index in range(5)]
group = lambda kind, layers, heads, dim: kind + field(u32(*layers)) + number(heads) + number(dim)
manifest = (
    field(bytes([7]) * 32) + field(b"llama") + field(b"bf16") + number(64) + number(5)
    + group(field(b"full"), [0, 2], 3, 64)
    + group(field(b"window") + number(512), [1], 1, 32)
    + group(field(b"recurrent") + number(1 << 33), [], 0, 0)
    + group(field(b"latent") + number(576), [3], 1, 576)
    + group(field(b"side") + field(b"indexer"), [4], 1, 8)
    + number(1) + number(2) + number(0) + number(1)
    + number(64) + number(0x47C35000) + field(b"yarn") + field(b"") + field(b"test")
)
shape = u32(2, 3, 64, 64) + text("kc4vt4:k8=1")
words_offset, words_bytes = 4096 * A, 4096 * B
slots_offset = words_offset + words_bytes + 4096 * C
hit = lambda index, tier: (
    ids[index] + u64(4096 + 2048 * index, 2 * index, 9) + u32(index, 3, 5) + bytes([tier, 0, 0, 0])
)
answer = lambda reservation, offset, code: u64(reservation, offset) + bytes([code]) + bytes(7)

REQUESTS = [
    (1, "Hello", u16(A, B) + u32(0) + text(NAME)),
    (2, "OpenNamespace", IDS + manifest + u32(0) + shape),
    (3, "MapExtent", u32(A, B)),
    (4, "Lookup", lookup),
    (5, "Acquire", acquire),
    (6, "Release", batch(ids[:2])),
    (7, "Reserve", parts + u32(E) + run),
    (8, "Commit", batch(ids[2:])),
    (9, "Abort", batch(ids[2:])),
    (10, "Await", parts + IDS),
    (11, "Prefetch", acquire),
    (12, "Pin", parts + u32(0) + u64(F) + run),
    (13, "Unpin", lookup),
    (14, "DeleteNamespace", IDS),
    (15, "DeleteTenant", IDS),
    (16, "Stats", b""),
    (17, "Explain", u32(1) + text(NAME)),
    (17, "Explain", u32(2) + parts + IDS),
    (18, "Drain", b""),
    (19, "Report", u32(A, B) + u64(F) + u32(PROVENANCE)),
    (20, "Tag", text(NAME)),
    (21, "Forgo", parts + run),
    (22, "Stage", u64(D)),
]
REPLIES = [
    (1, "Hello", u16(C, 0) + u32(A) + IDS[:16] + u64(D, E) + u32(B, F)),
    (2, "OpenNamespace", IDS + u32(A, B) + u64(C)),
    (3, "MapExtent", u64(slots_offset + 4096 * D, words_offset, words_bytes, slots_offset) + u32(A // 2, words_bytes // 8)),
    (4, "Lookup", u32(PROVENANCE) + batch([bytes([tier]) for tier in (1, 2, 3, 4)])),
    (5, "Acquire", u32(PROVENANCE) + batch([hit(1, 2), hit(2, 3)])),
    (6, "Release", u32(A, B)),
    (7, "Reserve", batch([answer(77, 8192, 1), answer(0, 0, 2), answer(0, 0, 3), answer(0, 0, 4)])),
    (8, "Commit", batch([bytes([code]) for code in (1, 2, 3, 4)])),
    (9, "Abort", u32(A, B)),
    (10, "Await", u32(PROVENANCE)),
    (11, "Prefetch", u32(A)),
    (12, "Pin", u32(A)),
    (13, "Unpin", u32(A)),
    (14, "DeleteNamespace", b""),
    (15, "DeleteTenant", u32(B)),
    (16, "Stats", JSON),
    (17, "Explain", JSON),
    (18, "Drain", b""),
    (19, "Report", b""),
    (20, "Tag", b""),
    (21, "Forgo", b""),
    (22, "Stage", u64(E)),
]


def frame(kind, flags, status, request_id, deadline_ms, body):
    return struct.pack("<4sHHIIQII", b"kvt1", kind, flags, len(body), status, request_id, deadline_ms, 0) + body


def lines():
    request_id = 1
    for kind, name, body in REQUESTS:
        yield f"request.{name}.{request_id}", frame(kind, 0, 0, request_id, 250, body)
        request_id += 1
    for kind, name, body in REPLIES:
        yield f"reply.{name}.{request_id}", frame(kind, 1, 0, request_id, 0, body)
        request_id += 1
    yield f"refusal.Full.{request_id}", frame(7, 1, 7, request_id, 0, NAME.encode())


def main():
    golden = pathlib.Path(__file__).with_name("wire_frames.txt")
    content = "".join(f"{name} {data.hex()}\n" for name, data in lines())
    if "--write" in sys.argv:
        golden.write_text(content)
    elif "--check" in sys.argv:
        sys.exit(0 if golden.read_text() == content else 1)
    else:
        print(content, end="")


if __name__ == "__main__":
    main()
