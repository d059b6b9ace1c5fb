"""XXH3-64 with a seed in plain Python, for inputs of at least 17 bytes: all that sums of slot images need."""

import struct

M = (1 << 64) - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def word(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def fold(a, b):
    product = a * b
    return product & M ^ product >> 64


def avalanche(value):
    value = (value ^ value >> 37) * 0x165667919E3779F9 & M
    return value ^ value >> 32


def short(seed, data):
    length = len(data)
    mix = lambda at, secret: fold(word(data, at) ^ word(SECRET, secret) + seed & M, word(data, at + 8) ^ word(SECRET, secret + 8) - seed & M)
    total = length * P64_1
    if length <= 128:
        for pair in range((length - 1) // 32, -1, -1):
            total += mix(16 * pair, 32 * pair) + mix(length - 16 * (pair + 1), 32 * pair + 16)
    else:
        total = avalanche(total + sum(mix(16 * at, 16 * at) for at in range(8)) & M)
        total += sum(mix(16 * at, 16 * (at - 8) + 3) for at in range(8, length // 16)) + mix(length - 16, 136 - 17)
    return avalanche(total & M)


def xxh3(seed, data):
    length = len(data)
    if length <= 240:
        assert length >= 17
        return short(seed, data)
    secret = b"".join(struct.pack("<QQ", word(SECRET, at) + seed & M, word(SECRET, at + 8) - seed & M) for at in range(0, 192, 16))
    sums = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]

    def take(at, key):
        for lane in range(8):
            value = word(data, at + 8 * lane)
            keyed = value ^ word(secret, key + 8 * lane)
            sums[lane ^ 1] = sums[lane ^ 1] + value & M
            sums[lane] = sums[lane] + (keyed & 0xFFFFFFFF) * (keyed >> 32) & M

    blocks, rest = divmod(length - 1, 1024)
    for block in range(blocks):
        for stripe in range(16):
            take(1024 * block + 64 * stripe, 8 * stripe)
        for lane in range(8):
            sums[lane] = (sums[lane] ^ sums[lane] >> 47 ^ word(secret, 128 + 8 * lane)) * P32_1 & M
    for stripe in range(rest // 64):
        take(1024 * blocks + 64 * stripe, 8 * stripe)
    take(length - 64, 128 - 7)
    total = length * P64_1
    for pair in range(4):
        total += fold(sums[2 * pair] ^ word(secret, 11 + 16 * pair), sums[2 * pair + 1] ^ word(secret, 19 + 16 * pair))
    return avalanche(total & M)
