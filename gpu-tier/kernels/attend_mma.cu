// Paged attention on matrix instructions: what attend.cu computes, in an order of operations of its own.
//
// Keys and values are the larger side of a product, 16 lanes by 16 rows of bf16: as they lie in exact blocks, codes turned into bf16 in
// registers, which is exact. Queries and probabilities are the smaller side, 8 vectors wide: times the scales that belong to a row, then
// cut into two bf16 whose sum keeps 16 bits, so that two products have nearly the exactness of f32. A vector is a column: its bits
// depend neither on the other columns nor on the width of a tile. Softmax, partials and their merging in span order are those of attend.cu.
//
// kvtier_attend_mma_vV_cC: tiles of V vectors, heads of up to 64 C channels (a multiple of 64). Exact blocks are bf16.
#include "matrix.cuh"

// Number x of row i of vector v, for the products with rows of `bits`.
template <int V, int C>
__device__ __forceinline__ void put_small(MatrixTile<V, C>& tile, int v, u32 i, float x, u32 bits) {
    const u32 slot = slot_of(i, bits), high = pair_of(x, 0.0f);
    tile.shared.small[0][v][slot] = static_cast<u16>(high);
    tile.shared.small[1][v][slot] = static_cast<u16>(pair_of(__fsub_rn(x, bf16_low(high)), 0.0f));
}

// Queries of vector v as the smaller side, by this half-warp. A key of 4 bits is c + r (code / 7.5 - 1), its code comes less 8.
template <int V, int C>
__device__ __forceinline__ void put_query(MatrixTile<V, C>& tile, int v, u32 bits) {
    const u32 dim = tile.shape.head_dim;
    float base = 0.0f;
#pragma unroll 1
    for (u32 d = threadIdx.x % 16; d < dim; d += 16) {
        float q = tile.shared.query[v][d];
        if (bits == 4) {
            const float step = __fmul_rn(f16_to_f32(tile.shared.header[dim + d]), 1.0f / 7.5f);
            base = __fmaf_rn(q, __fmaf_rn(step, 0.5f, f16_to_f32(tile.shared.header[d])), base);
            q = __fmul_rn(q, step);
        }
        put_small(tile, v, d, q, bits);
    }
    base = sum16(base);
    if (threadIdx.x % 16 == 0) tile.shared.base[v] = base;
}

// Probabilities of vector v as the smaller side, by this half-warp, which has those of tokens j + 16 k.
template <int V, int C>
__device__ __forceinline__ void put_weights(MatrixTile<V, C>& tile, int v, const float* p, u32 bits) {
    float base = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const u32 t = threadIdx.x % 16 + 16 * k;
        float weight = p[k];
        if (bits == 4) {
            const float step = __fmul_rn(f16_to_f32(tile.shared.value_scale[SPAN + t]), 1.0f / 7.5f);
            base = __fmaf_rn(weight, __fmaf_rn(step, 0.5f, f16_to_f32(tile.shared.value_scale[t])), base);
            weight = __fmul_rn(weight, step);
        } else if (bits == 8) {
            weight = __fmul_rn(weight, f16_to_f32(tile.shared.value_scale[t]));
        }
        put_small(tile, v, t, weight, bits);
    }
    base = sum16(base);
    if (threadIdx.x % 16 == 0) tile.shared.base[v] = base;
}

// Products of the keys to scores, and those to weights. Has a barrier.
template <bool Exact, int V, int C>
__device__ __forceinline__ void weigh(MatrixTile<V, C>& tile, const SpanPlace& span, const Sums<V, 1>& dots, u32 tiles) {
    const u32 key_bits = Exact ? 16 : tile.shape.key_bits, value_bits = Exact ? 16 : tile.shape.value_bits;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (first_lane(0) / 16 + j >= tiles) continue;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 token = lane_of<Exact>(0, j, half);
            const float scale = key_bits == 8 ? f16_to_f32(tile.shared.key_scale[token]) : 1.0f;
#pragma unroll
            for (int n = 0; n < V / 8; n++) {
                const u32 v = 8 * n + threadIdx.x % 4 * 2;
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float dot = dots.d[0][j][n][2 * half + e];
                    if (key_bits == 8) dot = __fmul_rn(dot, scale);
                    if (key_bits == 4) dot = __fadd_rn(dot, tile.shared.base[v + e]);
                    tile.shared.score[token][v + e] = __fmul_rn(tile.shape.scale, dot);
                }
            }
        }
    }
    __syncthreads();
#pragma unroll 1
    for (int v = threadIdx.x / 16; v < V; v += 4) {
        float p[4];
        tile.soften(v, span, p);
        put_weights(tile, v, p, value_bits);
    }
}

// Writes the span's sums, or takes them into the running state.
template <bool Exact, int V, int C>
__device__ __forceinline__ void deliver(MatrixTile<V, C>& tile, const SpanPlace& span, const Sums<V, C>& sums) {
    const bool has_base = !Exact && tile.shape.value_bits == 4;
    // All have done with the ring, where the image goes.
    __syncthreads();
#pragma unroll
    for (int c = 0; c < C; c++) {
        if (first_lane(c) >= tile.shape.head_dim) continue;
#pragma unroll
        for (int n = 0; n < V / 8; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int v = 8 * n + threadIdx.x % 4 * 2 + e;
                const float base = has_base ? tile.shared.base[v] : 0.0f;
                float o[2][2];
#pragma unroll
                for (int j = 0; j < 2; j++) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        o[j][half] = __fadd_rn(sums.d[c][j][n][2 * half + e], base);
                        if (Exact) tile.image(v)[lane_of<Exact>(c, j, half)] = o[j][half];
                    }
                }
                // Lanes of codes are neighbours.
                if (!Exact) *reinterpret_cast<float4*>(tile.image(v) + lane_of<Exact>(c, 0, 0)) = {o[0][0], o[0][1], o[1][0], o[1][1]};
            }
        }
    }
    tile.deliver_image(span);
}

struct Matrix {
    template <int V, int C>
    static __device__ __forceinline__ void exact(MatrixTile<V, C>& tile, const SpanPlace& span) {
        bool same;
        const u32 tokens = tile.choose(span, false, same);
        if (tokens == 0) return;
        MatrixRing<V, C, EXACT_PAD, EXACT_UNIT> ring;
        ring.stages = tile.shared.ring;
        exact_rows(tile.shape, tile.kv_head, span, tokens, ring.keys, ring.values);
        ring.begin();
#pragma unroll 1
        for (int v = threadIdx.x / 16; v < V; v += 4) put_query(tile, v, 16);
        Sums<V, 1> dots;
        dots.clear();
        const u32 key_pitch = ring.keys.row_bytes + EXACT_PAD, value_pitch = ring.values.row_bytes + EXACT_PAD;
#pragma unroll 1
        for (u32 s = 0; s < ring.key_stages; s++) {
            const u8* stage = ring.next(s);
            add_exact(tile, dots, stage, key_pitch, rows_in(ring.keys, s), s * ring.keys.stage_rows, ring.keys.pieces);
        }
        weigh<true>(tile, span, dots, ring.keys.pieces);
        Sums<V, C> sums;
        sums.clear();
#pragma unroll 1
        for (u32 s = ring.key_stages; s < ring.all; s++) {
            const u8* stage = ring.next(s);
            const u32 i = s - ring.key_stages, rows = (rows_in(ring.values, i) + 15) / 16 * 16;
            add_exact(tile, sums, stage, value_pitch, rows, i * ring.values.stage_rows, tile.shape.head_dim / 16);
        }
        deliver<true>(tile, span, sums);
    }

    template <int V, int C>
    static __device__ __forceinline__ void closed(MatrixTile<V, C>& tile, const SpanPlace& span) {
        bool same;
        if (tile.choose(span, true, same) == 0) return;
        MatrixRing<V, C, CODES_PAD, CODES_UNIT> ring;
        ring.stages = tile.shared.ring;
        ClosedPlace place;
        closed_place(tile.shape, tile.kv_head, span, place);
        ring.keys = place.keys;
        ring.values = place.values;
        start_numbers(tile.shared, tile.shape, place);
        ring.begin();
        const u32 key_bits = tile.shape.key_bits, value_bits = tile.shape.value_bits;
        const u32 key_pitch = ring.keys.row_bytes + CODES_PAD, value_pitch = ring.values.row_bytes + CODES_PAD;
        Sums<V, 1> dots;
        dots.clear();
#pragma unroll 1
        for (u32 s = 0; s < ring.key_stages; s++) {
            const u8* stage = ring.next(s);
            if (s == 0) {
#pragma unroll 1
                for (int v = threadIdx.x / 16; v < V; v += 4) put_query(tile, v, key_bits);
                __syncthreads();
            }
            const u32 rows = rows_in(ring.keys, s), first = s * ring.keys.stage_rows;
            if (key_bits == 4) {
                add_codes<4>(tile, dots, stage, key_pitch, rows, first * 8, SPAN / 16);
            } else {
                add_codes<8>(tile, dots, stage, key_pitch, rows, first * 4, SPAN / 16);
            }
        }
        weigh<false>(tile, span, dots, SPAN / 16);
        Sums<V, C> sums;
        sums.clear();
#pragma unroll 1
        for (u32 s = ring.key_stages; s < ring.all; s++) {
            const u8* stage = ring.next(s);
            const u32 i = s - ring.key_stages, rows = rows_in(ring.values, i), first = i * ring.values.stage_rows;
            if (value_bits == 4) {
                add_codes<4>(tile, sums, stage, value_pitch, rows, first * 8, tile.shape.head_dim / 16);
            } else {
                add_codes<8>(tile, sums, stage, value_pitch, rows, first * 4, tile.shape.head_dim / 16);
            }
        }
        deliver<false>(tile, span, sums);
    }
};

#define KV_ATTEND_MMA(v, c)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) kvtier_attend_mma_v##v##_c##c(KV_ATTEND_PARAMETERS) { \
        typedef MatrixShared<v, c> Shared;                                                                             \
        KV_SHARED(Shared, shared);                                                                                     \
        const AttendShape shape = KV_ATTEND_SHAPE;                                                                     \
        attend<v, c, Matrix>(shared, shape, jobs, spans, count);                                                       \
    }                                                                                                                  \
    KV_EXPORT(kvtier_attend_mma_v##v##_c##c)

KV_ATTEND_MMA(8, 1);
KV_ATTEND_MMA(8, 2);
KV_ATTEND_MMA(8, 4);
KV_ATTEND_MMA(16, 1);
KV_ATTEND_MMA(16, 2);
