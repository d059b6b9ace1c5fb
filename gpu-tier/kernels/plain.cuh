// The tile of the plain kernels, whose bits are those of the cpu device (attend_exact.cuh, attend_closed.cuh).
#pragma once

#include "ring.cuh"
#include "tile.cuh"

#define PLAIN_STAGES 4
#define PLAIN_STAGE_BYTES 4096
using PlainRing = Ring<PLAIN_STAGES, PLAIN_STAGE_BYTES, 0, 1>;

template <int V, int C>
struct PlainShared : TileShared<V, C> {
    alignas(16) u8 ring[PLAIN_STAGES][PLAIN_STAGE_BYTES];
    // By channel, so that a thread reads those of all vectors at once.
    alignas(16) float query[64 * C][V];
    // Queries and probabilities as pairs of 16-bit integers, in the order in which codes are unpacked.
    alignas(16) u32 packed_query[V][32 * C];
    alignas(16) u32 packed_weight[V][SPAN / 2];
    // Closed blocks: [head_dim] centres | [head_dim] half-ranges of keys, scales of the tokens' keys, scales or centres |
    // half-ranges of their values. f16.
    alignas(16) u16 header[2 * 64 * C];
    alignas(16) u16 key_scale[SPAN];
    alignas(16) u16 value_scale[2 * SPAN];
    // Worth of an integer and the part of the sum that codes do not have, of keys and of values.
    float key_unit[V], key_base[V], value_unit[V], value_base[V];

    __device__ __forceinline__ float& query_at(u32 channel, u32 v) { return query[channel][v]; }
};

template <int V, int C>
using PlainTile = Tile<V, C, PlainShared<V, C>>;

template <int V>
__device__ __forceinline__ void load_vector(float* to, const float* from) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + v);
        to[v] = four.x, to[v + 1] = four.y, to[v + 2] = four.z, to[v + 3] = four.w;
    }
}

template <int V>
__device__ __forceinline__ void store_vector(float* to, const float* from) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
        const float4 four = {from[v], from[v + 1], from[v + 2], from[v + 3]};
        *reinterpret_cast<float4*>(to + v) = four;
    }
}
