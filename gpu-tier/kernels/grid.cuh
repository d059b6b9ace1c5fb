// One side of one KV head of a block as a grid of bf16, rows by lanes, and its codes (docs/forms.md). Shared by i8h.cu and kc4vt4.cu.
//
// A thread takes a tile of 8 rows by 8 lanes: 16 bytes of each row, whole words of codes. Threads that share 8 rows are a team, a
// power of two of neighbouring lanes of a warp, so that a row's extremes are found by shuffles. The 32 bytes of codes that a tile has in a
// row of words go to memory in two accesses; neighbours swap halves, so that each access fills its sectors.
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
    u32 unused[5];
};

// Threads of a block of every kernel over parts.
#define GRID_THREADS 64

// 8 rows by 8 lanes of bf16.
struct Tile {
    uint4 row[8];
};

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

// Where a thread stands in a part whose rows are shared by teams. All threads of a block go through as many rounds, since they swap.
struct Place {
    u32 team;    // threads that share 8 rows
    u32 octets;  // of lanes
    u32 octet;   // this thread's first; the next is `team` octets on
    u32 group;   // its group of 8 rows
    bool live;   // whether there is such a group
};

__device__ __forceinline__ Place place_of(const Part& part) {
    Place out;
    out.team = team_of(part.lanes);
    out.octets = part.lanes / 8;
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

// The 8 words of a thread's lanes in a row of words of the codes.
struct Words {
    u32 word[8];
};

// Which threads move codes, and with whom.
struct Swap {
    bool live;    // this thread has words to move
    bool paired;  // its neighbour's words lie beside them: even and odd octets of a team
};

__device__ __forceinline__ Swap swap_of(u32 octet, u32 octets, bool live, u32 team) {
    Swap out;
    out.live = live && octet < octets;
    out.paired = team > 1 && (octet ^ 1) < octets;
    return out;
}

// Neighbours swap: even lanes give `even`, odd ones `odd`.
__device__ __forceinline__ uint4 swap16(const uint4& even, const uint4& odd) {
    const bool is_odd = threadIdx.x & 1;
    uint4 out;
    out.x = swap_with_neighbour(is_odd ? odd.x : even.x);
    out.y = swap_with_neighbour(is_odd ? odd.y : even.y);
    out.z = swap_with_neighbour(is_odd ? odd.z : even.z);
    out.w = swap_with_neighbour(is_odd ? odd.w : even.w);
    return out;
}

// Stores words from word `first` of the codes on. Whole warps reach it, also with threads that have none.
__device__ __forceinline__ void store_words(u64 codes, u64 first, const Words& words, Swap swap) {
    const uint4 low = make16(words.word[0], words.word[1], words.word[2], words.word[3]);
    const uint4 high = make16(words.word[4], words.word[5], words.word[6], words.word[7]);
    const uint4 theirs = swap16(high, low);
    if (!swap.live) return;
    // One access after the other for all of the warp, whoever stores what.
    const bool is_odd = threadIdx.x & 1;
    u32* to = at<u32>(codes) + first;
    store16(swap.paired && is_odd ? to - 4 : to, swap.paired && is_odd ? theirs : low);
    store16(swap.paired && !is_odd ? to + 8 : to + 4, swap.paired && !is_odd ? theirs : high);
}

// Loads what store_words has stored.
__device__ __forceinline__ Words load_words(u64 codes, u64 first, Swap swap) {
    const bool is_odd = threadIdx.x & 1;
    const u32* from = at<const u32>(codes) + first;
    uint4 one = make16(0, 0, 0, 0), two = one;
    if (swap.live) {
        one = load16(swap.paired && is_odd ? from - 4 : from);
        two = load16(swap.paired && !is_odd ? from + 8 : from + 4);
    }
    const uint4 theirs = swap16(two, one);
    const uint4 low = swap.paired && is_odd ? theirs : one, high = swap.paired && !is_odd ? theirs : two;
    return Words{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
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
