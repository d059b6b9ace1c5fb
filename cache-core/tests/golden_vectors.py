#!/usr/bin/env python3
"""Golden vectors of block identity, computed with hashlib alone from the documented encoding.

    python3 cache-core/tests/golden_vectors.py            prints them
    python3 cache-core/tests/golden_vectors.py --write    writes golden_vectors.json beside this file
    python3 cache-core/tests/golden_vectors.py --check    exits 1 when the file differs

Encoding: every field is its length as u64 little-endian, then its bytes; a number is a field of 8 bytes, little-endian; token ids are
one field of u32 little-endian each. The first field is a domain label.
"""
import hashlib
import json
import pathlib
import struct
import sys


def field(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def number(value: int) -> bytes:
    return field(struct.pack("<Q", value))


def tokens(ids) -> bytes:
    return field(b"".join(struct.pack("<I", token) for token in ids))


def digest(domain: str, *fields: bytes) -> bytes:
    return hashlib.sha256(field(domain.encode()) + b"".join(fields)).digest()


def tenant(salt) -> bytes:
    return digest("kvtier.tenant.v1", *([number(0)] if salt is None else [number(1), field(salt.encode())]))


def weights(file_digests) -> bytes:
    return digest("kvtier.weights.v1", *[field(each) for each in file_digests])


def block(namespace: bytes, parent, ids) -> bytes:
    return digest("kvtier.block.v1", field(parent or b""), field(namespace), tokens(ids))


def group(spec) -> bytes:
    kind = spec["kind"]
    head = {
        "full": lambda: field(b"full"),
        "window": lambda: field(b"window") + number(spec["tokens"]),
        "recurrent": lambda: field(b"recurrent") + number(spec["snapshot_bytes"]),
        "latent": lambda: field(b"latent") + number(spec["width"]),
        "side": lambda: field(b"side") + field(spec["name"].encode()),
    }[kind]()
    return head + tokens(spec["layers"]) + number(spec["kv_heads"]) + number(spec["head_dim"])


def namespace(spec, salt) -> bytes:
    text = lambda name: field(spec[name].encode())
    ranks = [number(value) for value in spec["tensor_parallel"] + spec["pipeline"]]
    rope = spec["rope"]
    base_bits = struct.unpack("<I", struct.pack("<f", rope["base"]))[0]
    return digest(
        "kvtier.namespace.v1",
        field(bytes.fromhex(spec["weights"])), text("architecture"), text("dtype"),
        number(spec["block_tokens"]), number(len(spec["groups"])), *[group(each) for each in spec["groups"]], *ranks,
        number(rope["dimensions"]), number(base_bits), field(rope["scaling"].encode()),
        text("adapter"), text("numerics"), field(tenant(salt)),
    )


def vectors():
    sample = {
        "weights": "07" * 32, "architecture": "llama", "dtype": "bf16", "block_tokens": 64,
        "groups": [{"kind": "full", "layers": [0, 1], "kv_heads": 3, "head_dim": 64}],
        "tensor_parallel": [0, 1], "pipeline": [0, 1],
        "rope": {"dimensions": 64, "base": 100000.0, "scaling": ""}, "adapter": "", "numerics": "test",
    }
    mixed = dict(
        sample, architecture="gemma3", tensor_parallel=[1, 2], pipeline=[0, 3], adapter="lora-7", numerics="r1 cpu int16 64 avx2",
        groups=[
            {"kind": "full", "layers": [5, 11], "kv_heads": 1, "head_dim": 256},
            {"kind": "window", "tokens": 512, "layers": [0, 1, 2, 3, 4], "kv_heads": 1, "head_dim": 256},
            {"kind": "recurrent", "snapshot_bytes": 65536, "layers": [6], "kv_heads": 0, "head_dim": 0},
            {"kind": "latent", "width": 576, "layers": [7], "kv_heads": 1, "head_dim": 576},
            {"kind": "side", "name": "indexer", "layers": [8], "kv_heads": 1, "head_dim": 128},
        ],
        rope={"dimensions": 256, "base": 1000000.0, "scaling": "linear:41000000"},
    )
    manifests = [
        {"manifest": spec, "salt": salt, "namespace": namespace(spec, salt).hex()}
        for spec, salt in [(sample, None), (sample, ""), (sample, "tenant-a"), (mixed, None)]
    ]
    chains = []
    for space, block_tokens, ids in [
        (b"\x01" * 32, 4, list(range(1, 9))),
        (namespace(sample, None), 16, [token * 7919 % 49152 for token in range(53)]),
        (namespace(mixed, "x"), 64, [4294967295 - token for token in range(128)]),
    ]:
        parent, hashes = None, []
        for start in range(0, len(ids) - block_tokens + 1, block_tokens):
            parent = block(space, parent, ids[start:start + block_tokens])
            hashes.append(parent.hex())
        chains.append({"namespace": space.hex(), "block_tokens": block_tokens, "tokens": ids, "hashes": hashes})
    files = [[], [hashlib.sha256(b"one").digest()], [hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()]]
    return {
        "tenants": [{"salt": salt, "tenant": tenant(salt).hex()} for salt in [None, "", "tenant-a", "\u00fcml\u00e4ut"]],
        "weights": [{"files": [each.hex() for each in group], "weights": weights(group).hex()} for group in files],
        "manifests": manifests,
        "chains": chains,
    }


def main() -> int:
    path = pathlib.Path(__file__).with_name("golden_vectors.json")
    text = json.dumps(vectors(), indent=1) + "\n"
    if "--write" in sys.argv:
        path.write_text(text)
    elif "--check" in sys.argv:
        return 0 if path.read_text() == text else 1
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
