// One side of one KV head of a block as a grid of bf16, rows by lanes, and its codes (docs/forms.md). Shared by i8h.cu and kc4vt4.cu.
//
// A thread takes a tile of 8 rows by 8 lanes: 16 bytes of each row, whole words of codes. Threads that share 8 rows are a team, a
// power of two of neighbouring lanes of a warp, so that a row's extremes are found by shuffles.
#pragma once

#include "kv.cuh"

// A part to encode or decode. `values` and `codes` start at multiples of 16 bytes, `scales` too.
struct Part {
    u64 values;   // bf16 [rows][lanes]
    u64 scales;   // f16: [rows] centres | [rows] half-ranges, or [tokens] scales
    u64 codes;    // u32 [rows / 8 or rows / 4][lanes]
    u64 verdict;  // u32: the largest outcome of its parts stays
    u32 rows;     // a multiple of 8
    u32 lanes;    // a multiple of 8
    u32 by_lane;  // i8h: a scale a lane (keys) instead of one a row (values)
    u32 unused;
};

// Threads of a block of every kernel over parts.
#define GRID_THREADS 64

// 8 rows by 8 lanes of bf16.
struct Tile {
    uint4 row[8];
};

__device__ __forceinline__ u32 word_of(const uint4& x, int i) { return i == 0 ? x.x : (i == 1 ? x.y : (i == 2 ? x.z : x.w)); }

// Element i of 8 bf16; i is known when the loop around it is unrolled.
__device__ __forceinline__ float bf16_at(const uint4& x, int i) {
    u32 word = word_of(x, i >> 1);
    return i & 1 ? bf16_high(word) : bf16_low(word);
}

// True when one of 8 bf16 is a NaN or an infinity.
__device__ __forceinline__ bool has_non_finite(const uint4& x) {
    bool found = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 word = word_of(x, i);
        found = found || (word & 0x7f80u) == 0x7f80u || (word & 0x7f800000u) == 0x7f800000u;
    }
    return found;
}

// Threads of a team for rows of `lanes`: enough for all octets of a row, at most a warp.
__device__ __forceinline__ u32 team_of(u32 lanes) {
    u32 team = 1;
    while (team < 32 && team * 8 < lanes) team *= 2;
    return team;
}

// Where a thread stands in a part whose rows are shared by teams.
struct Place {
    u32 team;   // threads that share 8 rows
    u32 octet;  // this thread's first octet of lanes; the next is `team` octets on
    u32 group;  // its group of 8 rows
    bool live;  // whether there is such a group
};

__device__ __forceinline__ Place place_of(const Part& part) {
    Place out;
    out.team = team_of(part.lanes);
    out.octet = threadIdx.x & (out.team - 1);
    out.group = blockIdx.y * (GRID_THREADS / out.team) + threadIdx.x / out.team;
    out.live = out.group < part.rows / 8;
    return out;
}

// Rows 8 group .. 8 group + 8, lanes 8 octet .. 8 octet + 8.
__device__ __forceinline__ void load_tile(Tile& tile, const Part& part, u32 group, u32 octet) {
    const u16* from = at<const u16>(part.values) + static_cast<u64>(group) * 8 * part.lanes + octet * 8;
#pragma unroll
    for (int r = 0; r < 8; r++) tile.row[r] = load16(from + r * part.lanes);
}

__device__ __forceinline__ void store_words(u64 codes, u64 word, const u32* words) {
    u32* to = at<u32>(codes) + word;
    store16(to, make16(words[0], words[1], words[2], words[3]));
    store16(to + 4, make16(words[4], words[5], words[6], words[7]));
}

__device__ __forceinline__ void load_words(u64 codes, u64 word, u32* words) {
    const u32* from = at<const u32>(codes) + word;
    uint4 a = load16(from), b = load16(from + 4);
    words[0] = a.x, words[1] = a.y, words[2] = a.z, words[3] = a.w;
    words[4] = b.x, words[5] = b.y, words[6] = b.z, words[7] = b.w;
}

// 8 f16, as 16 bytes.
__device__ __forceinline__ uint4 pack8(const u16* x) {
    return make16(x[0] | static_cast<u32>(x[1]) << 16, x[2] | static_cast<u32>(x[3]) << 16,
                  x[4] | static_cast<u32>(x[5]) << 16, x[6] | static_cast<u32>(x[7]) << 16);
}

__device__ __forceinline__ void unpack8(const uint4& from, u16* x) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = static_cast<u16>(word_of(from, i >> 1) >> (16 * (i & 1)));
}
