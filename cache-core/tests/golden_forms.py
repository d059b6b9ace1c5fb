#!/usr/bin/env python3
"""Golden vectors of the stored forms, computed in exact rational arithmetic from the formulas of docs/forms.md alone.

    python3 cache-core/tests/golden_forms.py            prints them
    python3 cache-core/tests/golden_forms.py --write    writes golden_forms.json beside this file
    python3 cache-core/tests/golden_forms.py --check    exits 1 when the file differs
"""
import hashlib
import json
import math
import pathlib
import struct
import sys
from fractions import Fraction

PAGE = 4096
FORMS = ["raw16", "raw32", "sx12", "i8h", "kc4vt4"]


def rounded(x: Fraction, bits: int, least: int) -> Fraction:
    """Nearest multiple of the format's spacing, ties to even. `least` is the exponent of the smallest denormal."""
    if x == 0:
        return Fraction(0)
    exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    if Fraction(2) ** exponent > abs(x):
        exponent -= 1
    spacing = Fraction(2) ** max(exponent - bits + 1, least)
    return round(x / spacing) * spacing


def f32(x) -> Fraction:
    return rounded(Fraction(x), 24, -149)


def nearest_f16(x: Fraction) -> Fraction:
    return rounded(x, 11, -24)


def f16_up(x: Fraction) -> Fraction:
    y = nearest_f16(x)
    if y < x:
        bits = struct.unpack("<H", struct.pack("<e", float(y)))[0] + 1
        y = Fraction(struct.unpack("<e", struct.pack("<H", bits))[0])
    return y


def f16_bytes(x: Fraction) -> bytes:
    return struct.pack("<e", float(x))


def from_bf16(bits: int) -> Fraction:
    return Fraction(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def to_bf16(x: Fraction) -> int:
    return struct.unpack("<I", struct.pack("<f", float(rounded(x, 8, -133))))[0] >> 16


def rows4(rows):
    """Header, codes and decoded values of a grid of bf16 bits."""
    centres, ranges, codes, decoded = [], [], [], []
    for row in rows:
        values = [from_bf16(bits) for bits in row]
        low, high = min(values), max(values)
        centre = f32(f32(low + high) / 2)
        c = nearest_f16(centre)
        r = f16_up(max(f32(high - c), f32(c - low)))
        factor = f32(Fraction(15, 2) / r) if r else 0
        code = [min(max(round(f32(f32(f32(k - c) + r) * factor)), 0), 15) if r else 0 for k in values]
        step, base = f32(r * 2 / 15), f32(c - r)
        # A centre that rounds to zero keeps its sign.
        centres.append(math.copysign(c, centre))
        ranges.append(r)
        codes.append(code)
        decoded.append([to_bf16(f32(each * step + base)) for each in code])
    words = [
        sum(codes[8 * g + i][lane] << 4 * i for i in range(8))
        for g in range(len(rows) // 8)
        for lane in range(len(rows[0]))
    ]
    return b"".join(map(f16_bytes, centres + ranges)), struct.pack(f"<{len(words)}I", *words), decoded


def i8h(rows, per_lane):
    """Scales, codes and decoded values."""
    values = [[from_bf16(bits) for bits in row] for row in rows]
    tokens = list(zip(*values)) if per_lane else values
    scales = [f16_up(f32(max(map(abs, token)) / 127)) for token in tokens]
    inverse = [f32(1 / s) if s else Fraction(0) for s in scales]
    pick = lambda row, lane: lane if per_lane else row
    code = [
        [min(max(round(f32(x * inverse[pick(i, j)])), -127), 127) for j, x in enumerate(row)]
        for i, row in enumerate(values)
    ]
    decoded = [[to_bf16(f32(x * scales[pick(i, j)])) for j, x in enumerate(row)] for i, row in enumerate(code)]
    packed = bytes(
        code[4 * g + i][lane] & 255 for g in range(len(rows) // 4) for lane in range(len(rows[0])) for i in range(4)
    )
    return b"".join(map(f16_bytes, scales)), packed, decoded


def allowance(elements):
    return max(8, elements * 13 // 4096)


def sx12(rows):
    """Window, codes and escapes."""
    values = [bits for row in rows for bits in row]
    exponents = [bits >> 7 & 255 for bits in values]
    top = max(max(exponents), 14)
    if sum(e < top - 14 for e in exponents) > allowance(len(values)):
        held = lambda t: sum(t - 14 <= e <= t for e in exponents)
        top = max(range(14, 256), key=lambda t: (held(t), t))
    codes = [top - e if 0 <= top - e <= 14 else 15 for e in exponents]
    escapes = bytes(e for e, code in zip(exponents, codes) if code == 15)
    plane = bytes(bits >> 8 & 128 | bits & 127 for bits in values)
    nibbles = bytes(
        codes[32 * g + j] | codes[32 * g + 16 + j] << 4 for g in range(len(values) // 32) for j in range(16)
    )
    return [top, len(escapes)], plane + nibbles, escapes


def source(name, rows, lanes):
    """bf16 bits of a grid, from a 64-bit linear congruential generator: x' = x 6364136223846793005 + 1442695040888963407."""
    x = sum(name.encode()) * 1000 + rows
    grid = []
    for row in range(rows):
        out = []
        for lane in range(lanes):
            x = (x * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
            top = x >> 48
            if name == "like keys":
                # A sum of bits around a centre of the row's own.
                y = Fraction(bin(x >> 20).count("1") - 22, 8) * (1 + row % 5) + Fraction(row % 7 - 3, 2)
                out.append(to_bf16(y))
            elif name == "any finite exponent":
                out.append(top & 0x807F | (90 + top % 50 if lane % 9 else 120) << 7)
            elif name == "equal in a row":
                out.append(to_bf16(Fraction(row - 20, 16)))
            else:
                out.append(top & 0x83FF)
        grid.append(out)
    return grid


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def bits(rows) -> bytes:
    return b"".join(struct.pack("<H", each) for row in rows for each in row)


def grids():
    for name in ["like keys", "any finite exponent", "equal in a row", "tiny"]:
        for rows, lanes in [(64, 64), (16, 24), (8, 8)]:
            grid = source(name, rows, lanes)
            header, codes, decoded = rows4(grid)
            window, sx_codes, escapes = sx12(grid)
            entry = {
                "name": name,
                "rows": rows,
                "lanes": lanes,
                "source": sha(bits(grid)),
                "rows4": {"header": header.hex(), "codes": sha(codes), "decoded": sha(bits(decoded))},
                "sx12": {"window": window, "codes": sha(sx_codes), "escapes": sha(escapes)},
            }
            for side, per_lane in [("i8h keys", True), ("i8h values", False)]:
                scales, codes, decoded = i8h(grid, per_lane)
                entry[side] = {"scales": scales.hex(), "codes": sha(codes), "decoded": sha(bits(decoded))}
            yield entry


def opaque():
    """Forms of an engine's own bytes: name, layout digest, and where the layers lie."""
    field = lambda data: struct.pack("<Q", len(data)) + data
    pages = lambda n: -(-n // PAGE) * PAGE
    for layers, layer_bytes, description in [(1, 1, ""), (30, 49152, "NHD bf16 16"), (3, 5001, "HND fp8_e4m3 é")]:
        layout = hashlib.sha256(field(b"kvtier.layout.v1") + field(description.encode())).hexdigest()
        header = pages(176 + 12 * layers + 8)
        yield {
            "layers": layers,
            "layer_bytes": layer_bytes,
            "description": description,
            "name": f"opaque:{layer_bytes}:{layout}",
            "offsets": [header + layer * layer_bytes for layer in range(layers)],
            "slot_bytes": header + pages(layers * layer_bytes),
        }


def layouts():
    pages = lambda n: -(-n // PAGE) * PAGE
    shapes = [(30, 3, 64, 64), (3, 1, 16, 16), (32, 8, 128, 64), (4, 2, 80, 32), (120, 1, 16, 16)]
    for layers, kv_heads, head_dim, tokens in shapes:
        n = head_dim * tokens
        per_head = {
            "raw16": (0, 0, 4 * n),
            "raw32": (0, 0, 8 * n),
            "sx12": (2 * (2 + allowance(n)), 0, 3 * n),
            "i8h": (0, 4 * tokens, 2 * n),
            "kc4vt4": (4 * head_dim, 4 * tokens, n),
        }
        for form in FORMS:
            planes = [kv_heads * each for each in per_head[form]]
            count = layers * sum(each > 0 for each in planes)
            at = pages(176 + 12 * count + 8)
            offsets, indices, index = [], [], 0
            for each in planes:
                offsets.append(at)
                indices.append(index if each else None)
                at += pages(layers * each)
                index += layers if each else 0
            yield {
                "layers": layers,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                "block_tokens": tokens,
                "form": form,
                "section_bytes": planes,
                "plane_offsets": offsets,
                "first_sections": indices,
                "section_count": count,
                "slot_bytes": at,
                "bits_per_value": sum(planes) * 8 / (2 * kv_heads * n),
            }


def main():
    text = json.dumps({"layouts": list(layouts()), "opaque": list(opaque()), "grids": list(grids())}, indent=1) + "\n"
    path = pathlib.Path(__file__).with_suffix(".json")
    if "--write" in sys.argv:
        path.write_text(text)
    elif "--check" in sys.argv:
        sys.exit(path.read_text() != text)
    else:
        print(text, end="")


main()
