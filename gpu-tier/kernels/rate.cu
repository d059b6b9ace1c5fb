// What a card's matrix units do: a floor of `kvtier bench cuda` (gpu-tier/src/cuda/bench.rs).
//
// Each warp multiplies a tile of 16 by 16 ones with one of 16 by 8, again and again, into accumulators that do not wait for each other: each
// element of the sums is 16 times `rounds`. Grid: any x; 256 threads.
#include "kv.cuh"

#define THREADS 256
#define CHAINS 8
// Two bf16.
#define ONES 0x3f803f80u

struct Rate {
    u64 sums;  // f32 [blocks][THREADS]: of what a thread has, the least
};

extern "C" __global__ void __launch_bounds__(THREADS) kvtier_rate(u64 table, u32 rounds) {
    float4 sums[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sums[c] = {0.0f, 0.0f, 0.0f, 0.0f};
    const uint4 a = make16(ONES, ONES, ONES, ONES);
    for (u32 round = 0; round < rounds; round++) {
#pragma unroll
        for (int c = 0; c < CHAINS; c++) multiply_bf16(sums[c], a, ONES, ONES);
    }
    float least = sums[0].x;
#pragma unroll
    for (int c = 0; c < CHAINS; c++) {
        const float all[4] = {sums[c].x, sums[c].y, sums[c].z, sums[c].w};
#pragma unroll
        for (int i = 0; i < 4; i++) least = all[i] < least ? all[i] : least;
    }
    at<float>(at<const Rate>(table)->sums)[blockIdx.x * THREADS + threadIdx.x] = least;
}
KV_EXPORT(kvtier_rate);
