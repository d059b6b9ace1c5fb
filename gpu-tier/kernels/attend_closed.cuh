// Closed spans, codes as they lie, in the order of operations of gpu-tier/src/attention/closed.rs: a thread is a token in scores, a
// channel of each 64 in sums; half-warps take the vectors in between.
#pragma once

#include "plain.cuh"

// Place of an integer among the 16-bit numbers that its group of codes meets: 8 bits in order; 4 bits even rows, then odd ones.
__device__ __forceinline__ u32 packed_place(u32 index, u32 bits) {
    return bits == 8 ? index : (index & ~7u) + (index & 1) * 4 + (index >> 1 & 3);
}

// What one integer is worth, of the largest magnitude: with 4 bits, the step's 1 / 7.5 is in it.
__device__ __forceinline__ float worth(u32 bits) { return bits == 8 ? 1.0f / 32767.0f : 1.0f / (32767.0f * 7.5f); }

__device__ __forceinline__ float magnitude(float x) { return f32_of(bits_of(x) & 0x7fffffffu); }

// Products of the 16-bit numbers at `weights` with the codes of one word, added to `sum`.
__device__ __forceinline__ i32 dot_word4(const u32* weights, u32 low, u32 high, i32 sum) {
    const uint4 w = *reinterpret_cast<const uint4*>(weights);
    sum = dot2_low(w.x, low, sum);
    sum = dot2_high(w.y, low, sum);
    sum = dot2_low(w.z, high, sum);
    return dot2_high(w.w, high, sum);
}
__device__ __forceinline__ i32 dot_word8(const u32* weights, u32 word, i32 sum) {
    const uint2 w = *reinterpret_cast<const uint2*>(weights);
    return dot2_high(w.y, word, dot2_low(w.x, word, sum));
}

// Adds the products of one word of codes with the weights of all vectors; `weights` are `stride` words apart.
template <int V>
__device__ __forceinline__ void add_word(i32* sums, const u32* weights, u32 stride, u32 word, u32 bits) {
    if (bits == 4) {
        const u32 low = word & 0x0f0f0f0fu, high = word >> 4 & 0x0f0f0f0fu;
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] = dot_word4(weights + v * stride, low, high, sums[v]);
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] = dot_word8(weights + v * stride, word, sums[v]);
    }
}

// Queries of vector v to integers, by this half-warp.
template <int V, int C>
__device__ __forceinline__ void quantise_query(PlainTile<V, C>& tile, int v) {
    const u32 dim = tile.shape.head_dim, bits = tile.shape.key_bits;
    float most = 0.0f, base = 0.0f;
#pragma unroll 1
    for (u32 d = threadIdx.x % 16; d < dim; d += 16) {
        const float q = tile.shared.query[d][v];
        float weight = q;
        if (bits == 4) {
            const float half = f16_to_f32(tile.shared.header[dim + d]);
            weight = __fmul_rn(q, half);
            base = __fmaf_rn(q, __fsub_rn(f16_to_f32(tile.shared.header[d]), half), base);
        }
        most = larger(most, magnitude(weight));
    }
    most = max16(most);
    base = sum16(base);
    const bool none = most < 1e-30f;
    const float inverse = none ? 0.0f : __fdiv_rn(32767.0f, most);
    i8* place = reinterpret_cast<i8*>(tile.shared.packed_query[v]);
#pragma unroll 1
    for (u32 d = threadIdx.x % 16; d < dim; d += 16) {
        float weight = tile.shared.query[d][v];
        if (bits == 4) weight = __fmul_rn(weight, f16_to_f32(tile.shared.header[dim + d]));
        const i32 integer = none ? 0 : __float2int_rn(__fmul_rn(weight, inverse));
        reinterpret_cast<u16*>(place)[packed_place(d, bits)] = static_cast<u16>(integer);
    }
    if (threadIdx.x % 16 == 0) {
        tile.shared.key_unit[v] = none ? 0.0f : __fmul_rn(most, worth(bits));
        tile.shared.key_base[v] = base;
    }
}

// Probabilities of vector v, times the tokens' scales, to integers, by this half-warp.
template <int V, int C>
__device__ __forceinline__ void quantise_weights(PlainTile<V, C>& tile, int v, const float* p) {
    const u32 j = threadIdx.x % 16, bits = tile.shape.value_bits;
    float weight[4], most = 0.0f, base = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const u32 t = j + 16 * k;
        const float first = f16_to_f32(tile.shared.value_scale[t]);
        if (bits == 4) {
            const float half = f16_to_f32(tile.shared.value_scale[SPAN + t]);
            weight[k] = __fmul_rn(p[k], half);
            base = __fmaf_rn(p[k], __fsub_rn(first, half), base);
        } else {
            weight[k] = __fmul_rn(p[k], first);
        }
        most = larger(most, magnitude(weight[k]));
    }
    most = max16(most);
    base = sum16(base);
    const bool none = most < 1e-30f;
    const float inverse = none ? 0.0f : __fdiv_rn(32767.0f, most);
    u16* place = reinterpret_cast<u16*>(tile.shared.packed_weight[v]);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const i32 integer = none ? 0 : __float2int_rn(__fmul_rn(weight[k], inverse));
        place[packed_place(j + 16 * k, bits)] = static_cast<u16>(integer);
    }
    if (j == 0) {
        tile.shared.value_unit[v] = none ? 0.0f : __fmul_rn(most, worth(bits));
        tile.shared.value_base[v] = base;
    }
}

// A closed span: scores, softmax, sums, all products in integers.
template <int V, int C>
__device__ __forceinline__ void attend_closed(PlainTile<V, C>& tile, const SpanPlace& span) {
    bool same;
    if (tile.choose(span, true, same) == 0) return;
    PlainRing ring;
    ring.stages = tile.shared.ring;
    ClosedPlace place;
    closed_place(tile.shape, tile.kv_head, span, place);
    ring.keys = place.keys;
    ring.values = place.values;
    start_numbers(tile.shared, tile.shape, place);
    ring.begin();
    const u32 key_bits = tile.shape.key_bits, value_bits = tile.shape.value_bits, dim = tile.shape.head_dim;
    i32 dots[V];
#pragma unroll
    for (int v = 0; v < V; v++) dots[v] = 0;
#pragma unroll 1
    for (u32 s = 0; s < ring.key_stages; s++) {
        const u32* stage = reinterpret_cast<const u32*>(ring.next(s)) + threadIdx.x;
        if (s == 0) {
#pragma unroll 1
            for (int v = threadIdx.x / 16; v < V; v += 4) quantise_query(tile, v);
            __syncthreads();
        }
        const u32 first = s * ring.keys.stage_rows, count = rows_in(ring.keys, s);
        const u32* weights = tile.shared.packed_query[0] + first * (key_bits == 4 ? 4 : 2);
#pragma unroll 1
        for (u32 r = 0; r < count; r++) {
            add_word<V>(dots, weights, 32 * C, stage[r * SPAN], key_bits);
            weights += key_bits == 4 ? 4 : 2;
        }
    }
    float scores[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        const float dot = __int2float_rn(dots[v]), unit = tile.shared.key_unit[v];
        const float sum = key_bits == 4 ? __fmaf_rn(dot, unit, tile.shared.key_base[v])
                                        : __fmul_rn(__fmul_rn(dot, unit), f16_to_f32(tile.shared.key_scale[threadIdx.x]));
        scores[v] = __fmul_rn(tile.shape.scale, sum);
    }
    store_vector<V>(tile.shared.score[threadIdx.x], scores);
    __syncthreads();
#pragma unroll 1
    for (int v = threadIdx.x / 16; v < V; v += 4) {
        float p[4];
        tile.soften(v, span, p);
        quantise_weights(tile, v, p);
    }
    i32 totals[C][V];
#pragma unroll
    for (int c = 0; c < C; c++) {
#pragma unroll
        for (int v = 0; v < V; v++) totals[c][v] = 0;
    }
#pragma unroll 1
    for (u32 s = ring.key_stages; s < ring.all; s++) {
        const u32* stage = reinterpret_cast<const u32*>(ring.next(s));
        const u32 first = (s - ring.key_stages) * ring.values.stage_rows, count = rows_in(ring.values, s - ring.key_stages);
        const u32* weights = tile.shared.packed_weight[0] + first * (value_bits == 4 ? 4 : 2);
#pragma unroll 1
        for (u32 r = 0; r < count; r++) {
#pragma unroll
            for (int c = 0; c < C; c++)
                if (tile.channel(c) < dim) add_word<V>(totals[c], weights, SPAN / 2, stage[r * dim + tile.channel(c)], value_bits);
            weights += value_bits == 4 ? 4 : 2;
        }
    }
#pragma unroll
    for (int c = 0; c < C; c++) {
#pragma unroll
        for (int v = 0; v < V; v++)
            tile.sums[c][v] = __fmaf_rn(__int2float_rn(totals[c][v]), tile.shared.value_unit[v], value_bits == 4 ? tile.shared.value_base[v] : 0.0f);
    }
    tile.deliver(span);
}
