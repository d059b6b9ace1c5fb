// What the attention kernels share: the exponential and the order of sums of gpu-tier/src/attention.rs.
#pragma once

#include "kv.cuh"

#define SPAN 64
// Tokens that lie in one block whatever its size.
#define PIECE 16

// e to the power of x, operation by operation as gpu-tier/src/cpu/math.rs has it. Source: Moshier, Cephes, expf.
__device__ __forceinline__ float exp_exact(float x) {
    const i32 whole = __float2int_rn(__fmul_rn(x, 1.4426950408889634f));
    const float n = __int2float_rn(whole);
    const float r = __fmaf_rn(n, 2.1219444e-4f, __fmaf_rn(n, -0.6933594f, x));
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3981999e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    const float y = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    float out = f32_of(bits_of(y) + (static_cast<u32>(whole) << 23));
    out = x < -87.33654f ? 0.0f : out;
    out = x > 88.72283f ? f32_of(0x7f800000u) : out;
    return x != x ? x : out;
}

__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

// Over 16 neighbouring lanes, for each of them: the largest, and the sum by halves (j and j + 8, then 4, 2, 1).
__device__ __forceinline__ float max16(float x) {
    for (u32 lanes = 8; lanes > 0; lanes /= 2) x = larger(x, __shfl_xor_sync(KV_WARP, x, lanes));
    return x;
}
__device__ __forceinline__ float sum16(float x) {
    for (u32 lanes = 8; lanes > 0; lanes /= 2) x = __fadd_rn(x, __shfl_xor_sync(KV_WARP, x, lanes));
    return x;
}

// Where (m, l, o) of the rows of one sequence lie: o of each vector and span, then m and l of all, so that both fill whole sectors.
// A vector is one query head of one row: number row * group + head % group of its KV head. A running state has one span.
struct Store {
    u64 base;      // f32 [kv_heads][vectors][spans][head_dim]; behind it f32 [spans][kv_heads][padded vectors][2]
    u32 kv_heads;
    u32 vectors;
    u32 spans;
    u32 head_dim;

    // Vectors whose m and l fill sectors.
    __device__ __forceinline__ u32 padded() const { return (vectors + 3) & ~3u; }

    __device__ __forceinline__ float* o(u32 kv_head, u32 vector, u32 span) const {
        return at<float>(base) + ((static_cast<u64>(kv_head) * vectors + vector) * spans + span) * head_dim;
    }
    __device__ __forceinline__ float* pairs(u32 kv_head, u32 vector, u32 span) const {
        const u64 behind = static_cast<u64>(kv_heads) * vectors * spans * head_dim;
        return at<float>(base) + behind + ((static_cast<u64>(span) * kv_heads + kv_head) * padded() + vector) * 2;
    }
};

__device__ __forceinline__ uint4 floats16(float x, float y, float z, float w) {
    return make16(bits_of(x), bits_of(y), bits_of(z), bits_of(w));
}

// Which job of a list, sorted by `first`, a number belongs to.
template <class Job>
__device__ __forceinline__ u32 job_number(u64 list, u32 count, u32 number) {
    const Job* jobs = at<const Job>(list);
    u32 low = 0, high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (jobs[middle].first <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Copies a record to shared memory, 16 bytes a thread: each warp that reads its fields one by one would fetch a sector for each. The caller puts a
// barrier behind it.
template <class Record>
__device__ __forceinline__ void fetch(Record& to, u64 from) {
    static_assert(sizeof(Record) % 16 == 0, "records are padded");
    if (threadIdx.x < sizeof(Record) / 16) reinterpret_cast<uint4*>(&to)[threadIdx.x] = load16(at<const u8>(from) + threadIdx.x * 16);
}
