// XXH3-64 with a seed, of one section each: the sum that cache-core/src/sum.rs makes. Source: the XXH3 specification
// (github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
//
// Long inputs: stripes of 64 bytes add to 8 accumulators, which are scrambled after every 16 of them. What a block of 16 stripes adds does
// not depend on what was there, so threads sum up blocks, 4 a block, and 8 of them chain the blocks. Grid: x = jobs; 128 threads.
#include "kv.cuh"

#define THREADS 128
#define BLOCKS (THREADS / 4)
#define BLOCK_BYTES 1024u
#define STRIPE_BYTES 64u

#define PRIME32_1 0x9E3779B1ull
#define PRIME32_2 0x85EBCA77ull
#define PRIME32_3 0xC2B2AE3Dull
#define PRIME64_1 0x9E3779B185EBCA87ull
#define PRIME64_2 0xC2B2AE3D27D4EB4Full
#define PRIME64_3 0x165667B19E3779F9ull
#define PRIME64_4 0x85EBCA77C2B2AE63ull
#define PRIME64_5 0x27D4EB2F165667C5ull
#define PRIME_MX1 0x165667919E3779F9ull
#define PRIME_MX2 0x9FB21C651E98DF25ull

struct Xxh3Job {
    u64 data;   // at a multiple of 16 bytes
    u64 bytes;
    u64 seed;
    u64 sum;    // u64
};

// The default secret, little-endian words.
__device__ const u64 SECRET[24] = {
    0xbe4ba423396cfeb8ull, 0x1cad21f72c81017cull, 0xdb979083e96dd4deull, 0x1f67b3b7a4a44072ull,
    0x78e5c0cc4ee679cbull, 0x2172ffcc7dd05a82ull, 0x8e2443f7744608b8ull, 0x4c263a81e69035e0ull,
    0xcb00c391bb52283cull, 0xa32e531b8b65d088ull, 0x4ef90da297486471ull, 0xd8acdea946ef1938ull,
    0x3f349ce33f76faa8ull, 0x1d4f0bc7c7bbdcf9ull, 0x3159b4cd4be0518aull, 0x647378d9c97e9fc8ull,
    0xc3ebd33483acc5eaull, 0xeb6313faffa081c5ull, 0x49daf0b751dd0d17ull, 0x9e68d429265516d3ull,
    0xfca1477d58be162bull, 0xce31d07ad1b8f88full, 0x280416958f3acb45ull, 0x7e404bbbcafbd7afull};

struct Xxh3Shared {
    u64 secret[24];
    u64 added[BLOCKS][8];
    u64 accumulators[8];
};

__device__ __forceinline__ u64 fold(u64 a, u64 b) { return a * b ^ __umul64hi(a, b); }
__device__ __forceinline__ u64 avalanche(u64 x) {
    x = (x ^ x >> 37) * PRIME_MX1;
    return x ^ x >> 32;
}
__device__ __forceinline__ u64 avalanche64(u64 x) {
    x = (x ^ x >> 33) * PRIME64_2;
    x = (x ^ x >> 29) * PRIME64_3;
    return x ^ x >> 32;
}
__device__ __forceinline__ u64 swap64(u64 x) {
    const u32 low = static_cast<u32>(x), high = static_cast<u32>(x >> 32);
    return static_cast<u64>(__byte_perm(low, 0, 0x0123)) << 32 | __byte_perm(high, 0, 0x0123);
}
__device__ __forceinline__ u64 rotate(u64 x, int bits) { return x << bits | x >> (64 - bits); }

// Bytes that need not be aligned.
__device__ __forceinline__ u64 read_bytes(const u8* from, int bytes) {
    u64 out = 0;
    for (int i = 0; i < bytes; i++) out |= static_cast<u64>(from[i]) << (8 * i);
    return out;
}
__device__ __forceinline__ u64 read64(const u8* from) { return read_bytes(from, 8); }
__device__ __forceinline__ u64 read32(const u8* from) { return read_bytes(from, 4); }

// Word of a secret at any byte.
__device__ __forceinline__ u64 secret_at(const u64* secret, u32 byte) {
    const u32 shift = byte % 8 * 8;
    const u64 low = secret[byte / 8];
    return shift == 0 ? low : low >> shift | secret[byte / 8 + 1] << (64 - shift);
}

__device__ __forceinline__ u64 mix16(const u8* from, u32 secret, u64 seed) {
    return fold(read64(from) ^ (secret_at(SECRET, secret) + seed), read64(from + 8) ^ (secret_at(SECRET, secret + 8) - seed));
}

// Up to 240 bytes, by one thread.
__device__ __forceinline__ u64 short_sum(const u8* data, u32 n, u64 seed) {
    if (n == 0) return avalanche64(seed ^ secret_at(SECRET, 56) ^ secret_at(SECRET, 64));
    if (n <= 3) {
        const u64 combined = static_cast<u64>(data[0]) << 16 | static_cast<u64>(data[n >> 1]) << 24 | data[n - 1] | static_cast<u64>(n) << 8;
        const u64 flip = ((secret_at(SECRET, 0) & 0xffffffffu) ^ (secret_at(SECRET, 4) & 0xffffffffu)) + seed;
        return avalanche64(combined ^ flip);
    }
    if (n <= 8) {
        seed ^= static_cast<u64>(__byte_perm(static_cast<u32>(seed), 0, 0x0123)) << 32;
        const u64 flip = (secret_at(SECRET, 8) ^ secret_at(SECRET, 16)) - seed;
        u64 x = (read32(data + n - 4) + (read32(data) << 32)) ^ flip;
        x ^= rotate(x, 49) ^ rotate(x, 24);
        x *= PRIME_MX2;
        x ^= (x >> 35) + n;
        x *= PRIME_MX2;
        return x ^ x >> 28;
    }
    if (n <= 16) {
        const u64 flip1 = (secret_at(SECRET, 24) ^ secret_at(SECRET, 32)) + seed;
        const u64 flip2 = (secret_at(SECRET, 40) ^ secret_at(SECRET, 48)) - seed;
        const u64 low = read64(data) ^ flip1, high = read64(data + n - 8) ^ flip2;
        return avalanche(n + swap64(low) + high + fold(low, high));
    }
    u64 sum = n * PRIME64_1;
    if (n <= 128) {
        for (u32 i = (n - 1) / 32 + 1; i-- > 0;) {
            sum += mix16(data + 16 * i, 32 * i, seed);
            sum += mix16(data + n - 16 * (i + 1), 32 * i + 16, seed);
        }
        return avalanche(sum);
    }
    for (u32 i = 0; i < 8; i++) sum += mix16(data + 16 * i, 16 * i, seed);
    sum = avalanche(sum);
    u64 more = 0;
    for (u32 i = 8; i < n / 16; i++) more += mix16(data + 16 * i, 16 * (i - 8) + 3, seed);
    more += mix16(data + n - 16, 136 - 17, seed);
    return avalanche(sum + more);
}

// What 16 bytes of a stripe add to accumulators 2 pair and 2 pair + 1.
__device__ __forceinline__ void add_pair(u64* added, u64 low, u64 high, u64 secret_low, u64 secret_high) {
    const u64 a = low ^ secret_low, b = high ^ secret_high;
    added[0] += high + (a & 0xffffffffu) * (a >> 32);
    added[1] += low + (b & 0xffffffffu) * (b >> 32);
}

__device__ __forceinline__ void scramble(u64& accumulator, u64 secret) {
    accumulator = (accumulator ^ accumulator >> 47 ^ secret) * PRIME32_1;
}

// Adds `stripes` stripes of the block at `data`, by 4 threads: `pair` is this one's.
__device__ __forceinline__ void add_stripes(const Xxh3Shared& shared, u64* added, const u8* data, u32 stripes, u32 pair) {
#pragma unroll 4
    for (u32 s = 0; s < stripes; s++) {
        const uint4 x = load16(data + s * STRIPE_BYTES + pair * 16);
        add_pair(added, x.x | static_cast<u64>(x.y) << 32, x.z | static_cast<u64>(x.w) << 32, shared.secret[s + 2 * pair],
                 shared.secret[s + 2 * pair + 1]);
    }
}

// More than 240 bytes; thread 0 has the sum.
__device__ __forceinline__ u64 long_sum(Xxh3Shared& shared, const u8* data, u64 n, u64 seed) {
    const u32 lane = threadIdx.x % 8, pair = threadIdx.x % 4;
    const u64 blocks = (n - 1) / BLOCK_BYTES;
    u64 accumulator = lane == 0 ? PRIME32_3 : lane == 1 ? PRIME64_1 : lane == 2 ? PRIME64_2 : lane == 3 ? PRIME64_3
                    : lane == 4 ? PRIME64_4 : lane == 5 ? PRIME32_2 : lane == 6 ? PRIME64_5 : PRIME32_1;
    if (threadIdx.x < 24) shared.secret[threadIdx.x] = threadIdx.x % 2 == 0 ? SECRET[threadIdx.x] + seed : SECRET[threadIdx.x] - seed;
    __syncthreads();
    for (u64 start = 0; start <= blocks; start += BLOCKS) {
        const u64 block = start + threadIdx.x / 4;
        u64 added[2] = {0, 0};
        const u32 rest = static_cast<u32>((n - 1 - blocks * BLOCK_BYTES) / STRIPE_BYTES);
        if (block <= blocks) add_stripes(shared, added, data + block * BLOCK_BYTES, block < blocks ? 16 : rest, pair);
        shared.added[threadIdx.x / 4][2 * pair] = added[0];
        shared.added[threadIdx.x / 4][2 * pair + 1] = added[1];
        __syncthreads();
        if (threadIdx.x < 8) {
            for (u64 b = 0; b < BLOCKS && start + b <= blocks; b++) {
                accumulator += shared.added[b][lane];
                if (start + b < blocks) scramble(accumulator, shared.secret[16 + lane]);
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < 8) {
        // The last 64 bytes, with the secret 7 bytes before its last stripe.
        const u8* last = data + n - STRIPE_BYTES;
        const u64 own = read64(last + 8 * lane) ^ secret_at(shared.secret, 121 + 8 * lane);
        accumulator += read64(last + 8 * (lane ^ 1)) + (own & 0xffffffffu) * (own >> 32);
        shared.accumulators[lane] = accumulator;
    }
    __syncthreads();
    u64 sum = n * PRIME64_1;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 4; i++)
            sum += fold(shared.accumulators[2 * i] ^ secret_at(shared.secret, 11 + 16 * i),
                        shared.accumulators[2 * i + 1] ^ secret_at(shared.secret, 19 + 16 * i));
    }
    return avalanche(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) kvtier_xxh3(u64 jobs) {
    KV_SHARED(Xxh3Shared, shared);
    const Xxh3Job job = at<const Xxh3Job>(jobs)[blockIdx.x];
    const u8* data = at<const u8>(job.data);
    u64 sum = 0;
    if (job.bytes > 240) {
        sum = long_sum(shared, data, job.bytes, job.seed);
    } else if (threadIdx.x == 0) {
        sum = short_sum(data, static_cast<u32>(job.bytes), job.seed);
    }
    if (threadIdx.x == 0) *at<u64>(job.sum) = sum;
}
KV_EXPORT(kvtier_xxh3);
