// Exact spans in the order of operations of gpu-tier/src/attention.rs: a thread is a token in scores, a channel of each 64 in sums.
#pragma once

#include "plain.cuh"

__device__ __forceinline__ float as_float(u16 x) { return f32_of(static_cast<u32>(x) << 16); }
__device__ __forceinline__ float as_float(float x) { return x; }

// Adds `count` channels of a stage to the products of this thread's token.
template <class Element, int V, int C>
__device__ __forceinline__ void add_keys(const PlainTile<V, C>& tile, float* dots, const u8* stage, u32 first, u32 count) {
    const Element* keys = reinterpret_cast<const Element*>(stage) + threadIdx.x;
#pragma unroll 4
    for (u32 r = 0; r < count; r++) {
        const float k = as_float(keys[r * SPAN]);
        float q[V];
        load_vector<V>(q, tile.shared.query[first + r]);
#pragma unroll
        for (int v = 0; v < V; v++) dots[v] = __fmaf_rn(q[v], k, dots[v]);
    }
}

// Adds `count` tokens of a stage to the sums; unless all vectors see them, each as far as it sees.
template <class Element, bool All, int V, int C>
__device__ __forceinline__ void add_values(PlainTile<V, C>& tile, const u8* stage, u32 first, u32 count) {
    const u32 dim = tile.shape.head_dim;
    i32 seen[V];
#pragma unroll
    for (int v = 0; v < V; v++) seen[v] = All ? 0 : tile.shared.seen[v];
#pragma unroll 2
    for (u32 r = 0; r < count; r++) {
        float p[V];
        load_vector<V>(p, tile.shared.score[first + r]);
#pragma unroll
        for (int c = 0; c < C; c++) {
            if (tile.channel(c) >= dim) continue;
            const float x = as_float(reinterpret_cast<const Element*>(stage)[r * dim + tile.channel(c)]);
#pragma unroll
            for (int v = 0; v < V; v++)
                if (All || static_cast<i32>(first + r) < seen[v]) tile.sums[c][v] = __fmaf_rn(p[v], x, tile.sums[c][v]);
        }
    }
}

// An exact span: scores, softmax, sums.
template <int V, int C>
__device__ __forceinline__ void attend_exact(PlainTile<V, C>& tile, const SpanPlace& span) {
    bool same;
    const u32 tokens = tile.choose(span, false, same);
    if (tokens == 0) return;
    PlainRing ring;
    ring.stages = tile.shared.ring;
    exact_rows(tile.shape, tile.kv_head, span, tokens, ring.keys, ring.values);
    ring.begin();
    float dots[V];
#pragma unroll
    for (int v = 0; v < V; v++) dots[v] = 0.0f;
    const bool sees = threadIdx.x < ring.keys.pieces * PIECE;
#pragma unroll 1
    for (u32 s = 0; s < ring.key_stages; s++) {
        const u8* stage = ring.next(s);
        if (!sees) continue;
        const u32 first = s * ring.keys.stage_rows, count = rows_in(ring.keys, s);
        if (tile.shape.element_bytes == 2) {
            add_keys<u16>(tile, dots, stage, first, count);
        } else {
            add_keys<float>(tile, dots, stage, first, count);
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) dots[v] = __fmul_rn(tile.shape.scale, dots[v]);
    if (sees) store_vector<V>(tile.shared.score[threadIdx.x], dots);
    __syncthreads();
#pragma unroll 1
    for (int v = threadIdx.x / 16; v < V; v += 4) {
        float p[4];
        tile.soften(v, span, p);
    }
#pragma unroll
    for (int c = 0; c < C; c++) {
#pragma unroll
        for (int v = 0; v < V; v++) tile.sums[c][v] = 0.0f;
    }
#pragma unroll 1
    for (u32 s = ring.key_stages; s < ring.all; s++) {
        const u8* stage = ring.next(s);
        const u32 first = (s - ring.key_stages) * ring.values.stage_rows, count = rows_in(ring.values, s - ring.key_stages);
        if (tile.shape.element_bytes == 2 && same) {
            add_values<u16, true>(tile, stage, first, count);
        } else if (tile.shape.element_bytes == 2) {
            add_values<u16, false>(tile, stage, first, count);
        } else {
            add_values<float, false>(tile, stage, first, count);
        }
    }
    tile.deliver(span);
}
