// sx12: bf16 without loss in 12 bits (cache-core/src/codec/sx12.rs, docs/forms.md), bit for bit.
//
// A job is one part: one side of one KV head. Parts of a layer share an escape area, which they fill one after the other, so encoding is
// two launches: kvtier_sx12_windows chooses each part's window and counts its escapes, kvtier_sx12_encode writes codes and, behind the
// escapes of the parts before, its own. Grid: x = parts; 128 threads. A thread takes 32 elements: 64 bytes of bf16, 32 + 16 of codes.
#include "kv.cuh"

#define SX12_THREADS 128
#define WINDOW 15u
#define ESCAPE 15u
#define TOP_MIN 14u
#define ESCAPES_MAX 255u

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
};

struct Sx12Shared {
    u32 bins[256];
    u32 reduce[SX12_THREADS / 32];
};

__device__ __forceinline__ u32 sx12_word(const uint4& x, int i) { return i == 0 ? x.x : (i == 1 ? x.y : (i == 2 ? x.z : x.w)); }
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

// Calls `take(exponent)` for each element that this thread looks at: 8 at a time, neighbours by neighbouring threads.
template <class Take>
__device__ __forceinline__ void each_exponent(const Sx12Part& part, Take take) {
    for (u32 i = threadIdx.x; i < part.elements / 8; i += SX12_THREADS) {
        uint4 eight = load16(at<const u16>(part.values) + static_cast<u64>(i) * 8);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 word = sx12_word(eight, w);
            take(exponent_low(word));
            take(exponent_high(word));
        }
    }
}

// The window of each part and how many escapes it has. Outcome: `too_many` when one part has more than 255.
extern "C" __global__ void __launch_bounds__(SX12_THREADS) kvtier_sx12_windows(u64 parts, u32 too_many) {
    KV_SHARED(Sx12Shared, shared);
    const Sx12Part part = at<const Sx12Part>(parts)[blockIdx.x];
    u32 most = 0;
    each_exponent(part, [&](u32 e) { most = e > most ? e : most; });
    u32 top = block_max(most, shared.reduce);
    top = top < TOP_MIN ? TOP_MIN : top;
    u32 below = 0;
    each_exponent(part, [&](u32 e) { below += e < top - TOP_MIN ? 1 : 0; });
    u32 escapes = block_sum(below, shared.reduce);
    if (escapes > allowance(part.elements)) {
        for (u32 i = threadIdx.x; i < 256; i += SX12_THREADS) shared.bins[i] = 0;
        __syncthreads();
        each_exponent(part, [&](u32 e) { atomicAdd(&shared.bins[e], 1); });
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
        u32 inside = block_max(best_inside, shared.reduce);
        top = block_max(best_inside == inside ? best_top : 0, shared.reduce);
        escapes = part.elements - inside;
    }
    if (threadIdx.x == 0) {
        if (escapes > ESCAPES_MAX) tell(part.verdict, too_many);
        u8* window = at<u8>(part.windows) + 2 * part.part;
        window[0] = static_cast<u8>(top);
        window[1] = static_cast<u8>(escapes > ESCAPES_MAX ? ESCAPES_MAX : escapes);
    }
}
KV_EXPORT(kvtier_sx12_windows);

// Escapes of the layer's parts before this one; `all` is that of all its parts.
__device__ __forceinline__ u32 escapes_before(const Sx12Part& part, u32& all) {
    const u8* windows = at<const u8>(part.windows);
    u32 before = 0;
    all = 0;
    for (u32 i = 0; i < part.parts; i++) {
        before += i < part.part ? windows[2 * i + 1] : 0;
        all += windows[2 * i + 1];
    }
    return before;
}

// Codes and escapes, after kvtier_sx12_windows. Outcome: `too_many` when the layer's escapes do not fit its area.
extern "C" __global__ void __launch_bounds__(SX12_THREADS) kvtier_sx12_encode(u64 parts, u32 too_many) {
    KV_SHARED(Sx12Shared, shared);
    const Sx12Part part = at<const Sx12Part>(parts)[blockIdx.x];
    const u32 top = at<const u8>(part.windows)[2 * part.part], groups = part.elements / 32;
    u32 all, next = escapes_before(part, all);
    u8* area = at<u8>(part.escapes);
    if (all > part.area) {
        if (threadIdx.x == 0) tell(part.verdict, too_many);
        return;
    }
    if (part.part == 0) {
        for (u32 i = all + threadIdx.x; i < part.area; i += SX12_THREADS) area[i] = 0;
    }
    for (u32 start = 0; start < groups; start += SX12_THREADS) {
        const u32 group = start + threadIdx.x;
        const bool live = group < groups;
        u32 bytes[8], nibbles[4] = {0, 0, 0, 0}, escapes = 0;
        uint4 from[4];
        if (live) {
#pragma unroll
            for (int q = 0; q < 4; q++) {
                from[q] = load16(at<const u16>(part.values) + static_cast<u64>(group) * 32 + q * 8);
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    u32 word = sx12_word(from[q], w);
                    u32 low = top - exponent_low(word), high = top - exponent_high(word);
                    low = low < ESCAPE ? low : ESCAPE;
                    high = high < ESCAPE ? high : ESCAPE;
                    escapes += (low == ESCAPE ? 1 : 0) + (high == ESCAPE ? 1 : 0);
                    // Elements 8 q + 2 w and the next: two bytes of a word, two nibbles of two bytes.
                    u32 pair = (word >> 8 & 0x80u) | (word & 0x7fu) | (word >> 24 & 0x80u) << 8 | (word >> 16 & 0x7fu) << 8;
                    if (w & 1) {
                        bytes[2 * q + w / 2] |= pair << 16;
                    } else {
                        bytes[2 * q + w / 2] = pair;
                    }
                    nibbles[2 * (q & 1) + w / 2] |= (low | high << 8) << (16 * (w & 1) + 4 * (q / 2));
                }
            }
            u8* codes = at<u8>(part.codes);
            store16(codes + static_cast<u64>(group) * 32, make16(bytes[0], bytes[1], bytes[2], bytes[3]));
            store16(codes + static_cast<u64>(group) * 32 + 16, make16(bytes[4], bytes[5], bytes[6], bytes[7]));
            store16(codes + part.elements + static_cast<u64>(group) * 16, make16(nibbles[0], nibbles[1], nibbles[2], nibbles[3]));
        }
        u32 total, to = next + block_before(escapes, shared.reduce, total);
        next += total;
        if (escapes == 0) continue;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            u32 word = sx12_word(from[i / 8], i / 2 % 4);
            u32 e = i & 1 ? exponent_high(word) : exponent_low(word);
            if (top - e >= ESCAPE && to < part.area) area[to++] = static_cast<u8>(e);
        }
    }
}
KV_EXPORT(kvtier_sx12_encode);

// Undoes kvtier_sx12_encode. Outcomes: `bad_escapes` when escapes and their counts do not add up, `bad_header` when a window is one that
// no encoder writes.
extern "C" __global__ void __launch_bounds__(SX12_THREADS)
    kvtier_sx12_decode(u64 parts, u32 bad_escapes, u32 bad_header) {
    KV_SHARED(Sx12Shared, shared);
    const Sx12Part part = at<const Sx12Part>(parts)[blockIdx.x];
    const u8* window = at<const u8>(part.windows) + 2 * part.part;
    // Read once: others may write them.
    const u32 top = window[0], count = window[1], groups = part.elements / 32;
    u32 all, next = escapes_before(part, all);
    const u32 end = next + count;
    if (top < TOP_MIN || end > part.area) {
        if (threadIdx.x == 0) tell(part.verdict, top < TOP_MIN ? bad_header : bad_escapes);
        return;
    }
    const u8* area = at<const u8>(part.escapes);
    for (u32 start = 0; start < groups; start += SX12_THREADS) {
        const u32 group = start + threadIdx.x;
        const bool live = group < groups;
        uint4 low = make16(0, 0, 0, 0), high = low, nibbles = low;
        u32 escapes = 0;
        if (live) {
            const u8* codes = at<const u8>(part.codes);
            low = load16(codes + static_cast<u64>(group) * 32);
            high = load16(codes + static_cast<u64>(group) * 32 + 16);
            nibbles = load16(codes + part.elements + static_cast<u64>(group) * 16);
#pragma unroll
            for (int w = 0; w < 4; w++) {
                u32 x = sx12_word(nibbles, w);
                // A nibble of ones leaves its lowest bit.
                escapes += __popc(x & x >> 1 & x >> 2 & x >> 3 & 0x11111111u);
            }
        }
        u32 total, from = next + block_before(escapes, shared.reduce, total);
        next += total;
        if (!live) continue;
#pragma unroll
        for (int q = 0; q < 4; q++) {
            u32 out[4];
#pragma unroll
            for (int w = 0; w < 4; w++) {
                u32 both = 0;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int element = 8 * q + 2 * w + i, byte = element % 16;
                    u32 code = sx12_word(nibbles, byte / 4) >> (8 * (byte % 4) + 4 * (element / 16)) & 15u;
                    u32 exponent = top - code;
                    if (code == ESCAPE) {
                        exponent = from < end ? area[from] : 0;
                        from++;
                    }
                    u32 x = sx12_word(element < 16 ? low : high, byte / 4) >> (8 * (byte % 4)) & 255u;
                    both |= ((x & 0x80u) << 8 | exponent << 7 | (x & 0x7fu)) << (16 * i);
                }
                out[w] = both;
            }
            store16(at<u16>(part.values) + static_cast<u64>(group) * 32 + q * 8, make16(out[0], out[1], out[2], out[3]));
        }
    }
    if (next != end && threadIdx.x == 0) tell(part.verdict, bad_escapes);
}
KV_EXPORT(kvtier_sx12_decode);
