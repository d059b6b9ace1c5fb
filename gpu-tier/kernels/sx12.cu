// sx12: bf16 without loss in 12 bits (cache-core/src/codec/sx12.rs, docs/forms.md), bit for bit.
//
// A job is one part: one side of one KV head; a layer's parts follow each other in memory and share an escape area, which they fill one after
// the other. So encoding is two launches: kvtier_sx12_encode reads a part once, chooses its window, writes its codes and puts its escapes
// into its own share of the area; kvtier_sx12_escapes moves them together. Grid: x = parts; 128 threads.
//
// Two neighbouring threads take 64 elements, two groups of 32: of each group one has elements 0..8 and 16..24, the other the rest. So a
// warp's 16-byte accesses to values fill their sectors, a byte of codes has both of its elements in one thread, and after a swap with the
// neighbour 16 bytes of codes lie in a row.
#include "kv.cuh"

#define SX12_THREADS 128
#define WINDOW 15u
#define ESCAPE 15u
#define TOP_MIN 14u
#define ESCAPES_MAX 255u
// Bytes of shares that are moved at once.
#define STASH 1024u

struct Sx12Part {
    u64 values;   // bf16 [elements], at a multiple of 16 bytes
    u64 codes;    // u8 [elements] sign and mantissa | u8 [elements / 2], at a multiple of 16 bytes
    u64 windows;  // (u8 top, u8 escapes) of each part of the layer
    u64 escapes;  // the layer's area of exponents
    u64 verdict;  // u32: the largest outcome of its parts stays
    u32 elements; // a multiple of 32
    u32 part;     // which of the layer's parts
    u32 parts;    // of the layer
    u32 area;     // bytes of the escape area
    u32 unused[2];
};

struct Sx12Shared {
    Sx12Part part;
    u32 bins[256];
    u32 reduce[SX12_THREADS / 32];
    u32 top, count;     // of the part, when windows are read
    u8 escapes[256];    // of the part
    u8 stash[STASH];    // shares of some parts
};

// 8 elements each: 8 e and 16 + 8 e of the first group, the same of the second, for the even (e = 0) and the odd thread of a pair.
struct Four {
    uint4 octet[4];
};

// Rounds whose values stay in registers; a part of more than 8192 elements is read again.
#define ROUNDS_HELD 2

__device__ __forceinline__ u32 exponent_low(u32 word) { return word >> 7 & 255u; }
__device__ __forceinline__ u32 exponent_high(u32 word) { return word >> 23 & 255u; }

// The largest of the block's numbers, for every thread. Ends with a barrier.
__device__ __forceinline__ u32 block_max(u32 x, u32* reduce) {
    for (u32 lanes = 16; lanes > 0; lanes /= 2) {
        u32 other = __shfl_xor_sync(KV_WARP, x, lanes);
        x = other > x ? other : x;
    }
    if (threadIdx.x % 32 == 0) reduce[threadIdx.x / 32] = x;
    __syncthreads();
    u32 out = 0;
    for (u32 i = 0; i < SX12_THREADS / 32; i++) out = reduce[i] > out ? reduce[i] : out;
    __syncthreads();
    return out;
}

// The sum of the block's numbers, for every thread. Ends with a barrier.
__device__ __forceinline__ u32 block_sum(u32 x, u32* reduce) {
    for (u32 lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(KV_WARP, x, lanes);
    if (threadIdx.x % 32 == 0) reduce[threadIdx.x / 32] = x;
    __syncthreads();
    u32 out = 0;
    for (u32 i = 0; i < SX12_THREADS / 32; i++) out += reduce[i];
    __syncthreads();
    return out;
}

// Sum of the numbers of the threads before this one; `total` is that of all. Ends with a barrier.
__device__ __forceinline__ u32 block_before(u32 x, u32* reduce, u32& total) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 sum = x;
    for (u32 lanes = 1; lanes < 32; lanes *= 2) {
        u32 other = __shfl_up_sync(KV_WARP, sum, lanes);
        sum += lane >= lanes ? other : 0;
    }
    if (lane == 31) reduce[warp] = sum;
    __syncthreads();
    u32 before = sum - x;
    total = 0;
    for (u32 i = 0; i < SX12_THREADS / 32; i++) {
        before += i < warp ? reduce[i] : 0;
        total += reduce[i];
    }
    __syncthreads();
    return before;
}

__device__ __forceinline__ u32 allowance(u32 elements) {
    u64 share = static_cast<u64>(elements) * 13 / 4096;
    return share < 8 ? 8u : static_cast<u32>(share);
}

// Where a thread stands in a round: pairs of threads by pairs of groups.
struct Sx12Place {
    u32 group;    // the first of its pair of groups
    bool odd;     // the pair's second thread
    bool first;   // there is such a group
    bool second;  // and one after it
};

__device__ __forceinline__ Sx12Place sx12_place(const Sx12Part& part, u32 round) {
    Sx12Place out;
    out.odd = threadIdx.x & 1;
    out.group = (round * SX12_THREADS + threadIdx.x) / 2 * 2;
    out.first = out.group < part.elements / 32;
    out.second = out.group + 1 < part.elements / 32;
    return out;
}

__device__ __forceinline__ u32 rounds_of(const Sx12Part& part) { return (part.elements / 32 + SX12_THREADS - 1) / SX12_THREADS; }

__device__ __forceinline__ bool has_octet(const Sx12Place& place, int q) { return q < 2 ? place.first : place.second; }

// Byte of the values where octet q of a thread is.
__device__ __forceinline__ u64 octet_byte(const Sx12Place& place, int q) {
    return (static_cast<u64>(place.group) + q / 2) * 64 + (q & 1) * 32 + (place.odd ? 16 : 0);
}

__device__ __forceinline__ Four load_four(const Sx12Part& part, u32 round) {
    const Sx12Place place = sx12_place(part, round);
    Four out;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        out.octet[q] = make16(0, 0, 0, 0);
        if (has_octet(place, q)) out.octet[q] = load16(at<const u8>(part.values) + octet_byte(place, q));
    }
    return out;
}

// A part's values by rounds, the first ones in registers.
struct Values {
    Four held[ROUNDS_HELD];

    __device__ __forceinline__ void load(const Sx12Part& part) {
#pragma unroll
        for (u32 round = 0; round < ROUNDS_HELD; round++) held[round] = load_four(part, round);
    }
    __device__ __forceinline__ Four of(const Sx12Part& part, u32 round) const {
        return round == 0 ? held[0] : (round == 1 ? held[1] : load_four(part, round));
    }
};

// Calls `take(exponent)` for each element of a round that this thread has.
template <class Take>
__device__ __forceinline__ void each_exponent(const Sx12Part& part, u32 round, const Four& four, Take take) {
    const Sx12Place place = sx12_place(part, round);
#pragma unroll
    for (int q = 0; q < 4; q++) {
        if (!has_octet(place, q)) continue;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            take(exponent_low(word_of(four.octet[q], w)));
            take(exponent_high(word_of(four.octet[q], w)));
        }
    }
}

// The same over all rounds.
template <class Take>
__device__ __forceinline__ void every_exponent(const Sx12Part& part, const Values& values, Take take) {
    for (u32 round = 0; round < rounds_of(part); round++) each_exponent(part, round, values.of(part, round), take);
}

// Top of the part's window, and how many elements are outside of it.
__device__ __forceinline__ u32 choose_top(const Sx12Part& part, const Values& values, Sx12Shared& shared, u32& escapes) {
    u32 most = 0;
    every_exponent(part, values, [&](u32 e) { most = e > most ? e : most; });
    u32 top = block_max(most, shared.reduce);
    top = top < TOP_MIN ? TOP_MIN : top;
    u32 below = 0;
    every_exponent(part, values, [&](u32 e) { below += e < top - TOP_MIN ? 1 : 0; });
    escapes = block_sum(below, shared.reduce);
    if (escapes <= allowance(part.elements)) return top;
    for (u32 i = threadIdx.x; i < 256; i += SX12_THREADS) shared.bins[i] = 0;
    __syncthreads();
    every_exponent(part, values, [&](u32 e) { atomicAdd(&shared.bins[e], 1); });
    __syncthreads();
    // The most elements first, then the largest top: a window is at most 2^24 elements, so both fit a word.
    u32 best_inside = 0, best_top = 0;
    for (u32 candidate = TOP_MIN + threadIdx.x; candidate < 256; candidate += SX12_THREADS) {
        u32 inside = 0;
        for (u32 i = 0; i < WINDOW; i++) inside += shared.bins[candidate - i];
        if (inside >= best_inside) {
            best_inside = inside;
            best_top = candidate;
        }
    }
    const u32 inside = block_max(best_inside, shared.reduce);
    escapes = part.elements - inside;
    return block_max(best_inside == inside ? best_top : 0, shared.reduce);
}

// Codes of 8 elements: a byte of sign and mantissa each, and a byte with the 4-bit code.
__device__ __forceinline__ void code_octet(const uint4& from, u32 top, u32* bytes, u32* codes) {
    bytes[0] = bytes[1] = codes[0] = codes[1] = 0;
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const u32 word = word_of(from, w), shift = 16 * (w & 1);
        u32 low = top - exponent_low(word), high = top - exponent_high(word);
        low = low < ESCAPE ? low : ESCAPE;
        high = high < ESCAPE ? high : ESCAPE;
        bytes[w / 2] |= ((word >> 8 & 0x80u) | (word & 0x7fu) | (word >> 24 & 0x80u) << 8 | (word >> 16 & 0x7fu) << 8) << shift;
        codes[w / 2] |= (low | high << 8) << shift;
    }
}

// Bytes of codes where a thread's 16 of a group begin: sign and mantissa of both groups, 4-bit codes of one of them.
__device__ __forceinline__ u64 bytes_at(const Sx12Place& place, u32 second) {
    return (static_cast<u64>(place.group) + second) * 32 + (place.odd ? 16 : 0);
}
__device__ __forceinline__ u64 nibbles_at(const Sx12Part& part, const Sx12Place& place) {
    return part.elements + (static_cast<u64>(place.group) + (place.odd ? 1 : 0)) * 16;
}

// Codes of a round, 16 bytes an access: neighbours swap what belongs into the other's.
__device__ __forceinline__ void store_codes(const Sx12Part& part, const Sx12Place& place, const Four& four, u32 top) {
    u8* to = at<u8>(part.codes);
    u32 nibbles[2][2];
#pragma unroll
    for (int group = 0; group < 2; group++) {
        u32 front[2], back[2], low[2], high[2], theirs[2];
        code_octet(four.octet[2 * group], top, front, low);
        code_octet(four.octet[2 * group + 1], top, back, high);
#pragma unroll
        for (int w = 0; w < 2; w++) {
            nibbles[group][w] = low[w] | high[w] << 4;
            theirs[w] = swap_with_neighbour(place.odd ? front[w] : back[w]);
        }
        const uint4 bytes = place.odd ? make16(theirs[0], theirs[1], back[0], back[1]) : make16(front[0], front[1], theirs[0], theirs[1]);
        if (has_octet(place, 2 * group)) store16(to + bytes_at(place, group), bytes);
    }
    // The even thread has the first group's 4-bit codes, the odd one the second's.
    const u32 x = swap_with_neighbour(place.odd ? nibbles[0][0] : nibbles[1][0]);
    const u32 y = swap_with_neighbour(place.odd ? nibbles[0][1] : nibbles[1][1]);
    const uint4 whole = place.odd ? make16(x, y, nibbles[1][0], nibbles[1][1]) : make16(nibbles[0][0], nibbles[0][1], x, y);
    if (place.odd ? place.second : place.first) store16(to + nibbles_at(part, place), whole);
}

// Where a thread's escapes stand among those of the block, by octet: the pair's octets take turns, the even thread's first. `next` is where
// this round's begin, and becomes where the next one's do.
struct Ranks {
    u32 of[4];
};

__device__ __forceinline__ Ranks ranks_of(const u32* counts, const Sx12Place& place, u32* reduce, u32& next) {
    const u32 mine = counts[0] | counts[1] << 8 | counts[2] << 16 | counts[3] << 24;
    const u32 theirs = swap_with_neighbour(mine);
    const u32 all = counts[0] + counts[1] + counts[2] + counts[3];
    u32 total;
    u32 rank = next + block_before(all, reduce, total);
    next += total;
    if (place.odd) rank -= (theirs & 255u) + (theirs >> 8 & 255u) + (theirs >> 16 & 255u) + (theirs >> 24);
    Ranks out;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        out.of[q] = rank + (place.odd ? theirs >> (8 * q) & 255u : 0);
        rank += counts[q] + (theirs >> (8 * q) & 255u);
    }
    return out;
}

// Exponents of a round's escapes to where their ranks say, as far as there is room. `out` has bit i of octet q in bit 8 q + i.
__device__ __forceinline__ void put_escapes(const Four& four, u32 out, const Ranks& ranks, u8* to, u32 room) {
    if (out == 0) return;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        u32 rank = ranks.of[q];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 word = word_of(four.octet[q], i / 2);
            if ((out >> (8 * q + i) & 1u) == 0) continue;
            if (rank < room) to[rank] = static_cast<u8>(i & 1 ? exponent_high(word) : exponent_low(word));
            rank++;
        }
    }
}

// Which elements of a round are outside of a window, and how many an octet.
__device__ __forceinline__ u32 outside_of(const Four& four, const Sx12Place& place, u32 top, u32* counts) {
    u32 out = 0;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        u32 escapes = 0;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const u32 word = word_of(four.octet[q], w);
            escapes |= (top - exponent_low(word) >= ESCAPE ? 1u : 0u) << (2 * w) | (top - exponent_high(word) >= ESCAPE ? 1u : 0u) << (2 * w + 1);
        }
        escapes = has_octet(place, q) ? escapes : 0;
        counts[q] = __popc(escapes);
        out |= escapes << (8 * q);
    }
    return out;
}

// One part: its window, its codes, and its escapes in its own share of the layer's area if they fit. Outcome: `too_many` when it has more
// than 255.
extern "C" __global__ void __launch_bounds__(SX12_THREADS) kvtier_sx12_encode(u64 parts, u32 too_many) {
    KV_SHARED(Sx12Shared, shared);
    fetch_record(shared.part, parts);
    const Sx12Part part = shared.part;
    Values values;
    values.load(part);
    u32 escapes, next = 0;
    const u32 top = choose_top(part, values, shared, escapes);
    for (u32 round = 0; round < rounds_of(part); round++) {
        const Sx12Place place = sx12_place(part, round);
        const Four four = values.of(part, round);
        store_codes(part, place, four, top);
        if (escapes == 0) continue;
        u32 counts[4];
        const u32 out = outside_of(four, place, top, counts);
        const Ranks ranks = ranks_of(counts, place, shared.reduce, next);
        put_escapes(four, out, ranks, shared.escapes, ESCAPES_MAX);
    }
    __syncthreads();
    const u32 share = part.area / part.parts;
    if (escapes <= share && escapes <= ESCAPES_MAX) {
        u8* to = at<u8>(part.escapes) + static_cast<u64>(part.part) * share;
        for (u32 i = threadIdx.x; i < escapes; i += SX12_THREADS) to[i] = shared.escapes[i];
    }
    if (threadIdx.x == 0) {
        if (escapes > ESCAPES_MAX) tell(part.verdict, too_many);
        u8* window = at<u8>(part.windows) + 2 * part.part;
        window[0] = static_cast<u8>(top);
        window[1] = static_cast<u8>(escapes > ESCAPES_MAX ? ESCAPES_MAX : escapes);
    }
}
KV_EXPORT(kvtier_sx12_encode);

// Moves the escapes of a layer from their parts' shares of the area to where they belong: never further back than they are.
__device__ __forceinline__ void move_together(const Sx12Part& part, Sx12Shared& shared, u32 share) {
    const u8* windows = at<const u8>(part.windows);
    u8* area = at<u8>(part.escapes);
    u32 *first = shared.bins, *count = shared.bins + SX12_THREADS;
    u32 next = 0;
    const u32 most = STASH / share < SX12_THREADS ? STASH / share : SX12_THREADS;
    for (u32 start = 0; start < part.parts; start += most) {
        const u32 parts = part.parts - start < most ? part.parts - start : most;
        for (u32 i = threadIdx.x; i < parts * share; i += SX12_THREADS) shared.stash[i] = area[static_cast<u64>(start) * share + i];
        const u32 mine = threadIdx.x < parts ? windows[2 * (start + threadIdx.x) + 1] : 0;
        u32 total;
        first[threadIdx.x] = next + block_before(mine, shared.reduce, total);
        count[threadIdx.x] = mine;
        next += total;
        __syncthreads();
        for (u32 i = threadIdx.x; i < parts * share; i += SX12_THREADS) {
            const u32 of = i / share, at_share = i % share;
            if (at_share < count[of]) area[first[of] + at_share] = shared.stash[i];
        }
        __syncthreads();
    }
}

// Finds a layer's escapes anew: one of its parts has more than its share.
__device__ __forceinline__ void find_again(const Sx12Part& part, Sx12Shared& shared) {
    u32 next = 0;
    for (u32 i = 0; i < part.parts; i++) {
        Sx12Part other = part;
        other.values += static_cast<u64>(i) * part.elements * 2;
        const u32 top = at<const u8>(part.windows)[2 * i];
        for (u32 round = 0; round < rounds_of(part); round++) {
            const Sx12Place place = sx12_place(part, round);
            const Four four = load_four(other, round);
            u32 counts[4];
            const u32 out = outside_of(four, place, top, counts);
            const Ranks ranks = ranks_of(counts, place, shared.reduce, next);
            put_escapes(four, out, ranks, at<u8>(part.escapes), part.area);
        }
    }
}

// The escapes of a layer, one part's after the other's, after kvtier_sx12_encode; the block of its first part does it. Outcome: `too_many`
// when they do not fit the area.
extern "C" __global__ void __launch_bounds__(SX12_THREADS) kvtier_sx12_escapes(u64 parts, u32 too_many) {
    KV_SHARED(Sx12Shared, shared);
    fetch_record(shared.part, parts);
    const Sx12Part part = shared.part;
    if (part.part != 0) return;
    u32 sum = 0, most = 0;
    for (u32 i = threadIdx.x; i < part.parts; i += SX12_THREADS) {
        const u32 count = at<const u8>(part.windows)[2 * i + 1];
        sum += count;
        most = count > most ? count : most;
    }
    const u32 all = block_sum(sum, shared.reduce), share = part.area / part.parts;
    most = block_max(most, shared.reduce);
    if (all > part.area) {
        if (threadIdx.x == 0) tell(part.verdict, too_many);
        return;
    }
    if (most <= share && share > 0 && share <= STASH) {
        move_together(part, shared, share);
    } else {
        find_again(part, shared);
    }
    for (u32 i = all + threadIdx.x; i < part.area; i += SX12_THREADS) at<u8>(part.escapes)[i] = 0;
}
KV_EXPORT(kvtier_sx12_escapes);

// Reads the part's window, each byte once: others may write them. Returns the escapes of the layer's parts before this one.
__device__ __forceinline__ u32 read_window(const Sx12Part& part, Sx12Shared& shared) {
    const u8* windows = at<const u8>(part.windows);
    u32 before = 0;
    for (u32 i = threadIdx.x; i <= part.part; i += SX12_THREADS) {
        const u32 count = windows[2 * i + 1];
        if (i < part.part) {
            before += count;
        } else {
            shared.top = windows[2 * i];
            shared.count = count;
        }
    }
    return block_sum(before, shared.reduce);
}

// What store_codes has stored, as bytes of sign and mantissa by octet and words of 4-bit codes by group: low halves are those of octets 0 and
// 2, high ones those of 1 and 3.
struct Codes {
    u32 bytes[4][2];
    u32 nibbles[2][2];
};

__device__ __forceinline__ Codes load_codes(const Sx12Part& part, const Sx12Place& place) {
    const u8* from = at<const u8>(part.codes);
    Codes out;
#pragma unroll
    for (int group = 0; group < 2; group++) {
        uint4 x = make16(0, 0, 0, 0);
        if (has_octet(place, 2 * group)) x = load16(from + bytes_at(place, group));
        const u32 a = swap_with_neighbour(place.odd ? x.x : x.z), b = swap_with_neighbour(place.odd ? x.y : x.w);
        out.bytes[2 * group][0] = place.odd ? a : x.x;
        out.bytes[2 * group][1] = place.odd ? b : x.y;
        out.bytes[2 * group + 1][0] = place.odd ? x.z : a;
        out.bytes[2 * group + 1][1] = place.odd ? x.w : b;
    }
    uint4 x = make16(0, 0, 0, 0);
    if (place.odd ? place.second : place.first) x = load16(from + nibbles_at(part, place));
    const u32 a = swap_with_neighbour(place.odd ? x.x : x.z), b = swap_with_neighbour(place.odd ? x.y : x.w);
    out.nibbles[0][0] = place.odd ? a : x.x;
    out.nibbles[0][1] = place.odd ? b : x.y;
    out.nibbles[1][0] = place.odd ? x.z : a;
    out.nibbles[1][1] = place.odd ? x.w : b;
    return out;
}

// The 4-bit code of element i of octet q.
__device__ __forceinline__ u32 nibble_of(const Codes& codes, int q, int i) {
    return codes.nibbles[q / 2][i / 4] >> (8 * (i % 4) + 4 * (q & 1)) & 15u;
}

// Undoes the encoding. Outcomes: `bad_escapes` when escapes and their counts do not add up, `bad_header` when a window is one that no
// encoder writes.
extern "C" __global__ void __launch_bounds__(SX12_THREADS)
    kvtier_sx12_decode(u64 parts, u32 bad_escapes, u32 bad_header) {
    KV_SHARED(Sx12Shared, shared);
    fetch_record(shared.part, parts);
    const Sx12Part part = shared.part;
    const u32 before = read_window(part, shared), top = shared.top, count = shared.count;
    if (top < TOP_MIN || before + count > part.area) {
        if (threadIdx.x == 0) tell(part.verdict, top < TOP_MIN ? bad_header : bad_escapes);
        return;
    }
    for (u32 i = threadIdx.x; i < count; i += SX12_THREADS) shared.escapes[i] = at<const u8>(part.escapes)[before + i];
    __syncthreads();
    u32 next = 0;
    for (u32 round = 0; round < rounds_of(part); round++) {
        const Sx12Place place = sx12_place(part, round);
        const Codes codes = load_codes(part, place);
        u32 counts[4];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            counts[q] = 0;
#pragma unroll
            for (int w = 0; w < 2; w++) {
                const u32 x = codes.nibbles[q / 2][w] >> (4 * (q & 1));
                // A code of ones leaves its lowest bit.
                counts[q] += __popc(x & x >> 1 & x >> 2 & x >> 3 & 0x01010101u);
            }
        }
        const Ranks ranks = ranks_of(counts, place, shared.reduce, next);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            u32 rank = ranks.of[q], out[4];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const u32 code = nibble_of(codes, q, i), x = codes.bytes[q][i / 4] >> (8 * (i % 4)) & 255u;
                u32 exponent = top - code;
                if (code == ESCAPE) {
                    exponent = rank < count ? shared.escapes[rank] : 0;
                    rank++;
                }
                const u32 value = (x & 0x80u) << 8 | exponent << 7 | (x & 0x7fu);
                out[i / 2] = i & 1 ? out[i / 2] | value << 16 : value;
            }
            if (has_octet(place, q)) store16(at<u8>(part.values) + octet_byte(place, q), make16(out[0], out[1], out[2], out[3]));
        }
    }
    if (next != count && threadIdx.x == 0) tell(part.verdict, bad_escapes);
}
KV_EXPORT(kvtier_sx12_decode);
