// Merges (m, l, o) partials in span order and divides (gpu-tier/src/attention.rs), bit for bit as the cpu device.
//
// Grid: x = fours of vectors of each KV head, of all jobs; 64 threads. What the merge multiplies with follows from the m alone: a thread
// takes one vector of one of 16 spans. Then a thread takes 4 channels of a vector through those spans in order.
#include "attention.cuh"

#define THREADS 64
// Vectors of a thread block, spans at a time.
#define FOUR 4
#define STEP 16

struct FinishJob {
    u64 store;         // a Store
    u64 output;        // f32 [rows][heads][head_dim]
    u32 store_spans;
    u32 first;         // first unit of the launch: unit = four kv_heads + kv_head
    u32 rows;
    u32 first_position;
    u32 running;       // one state, merged already
    u32 unused[7];
};

struct FinishShared {
    FinishJob job;
    float m[STEP][FOUR], l[STEP][FOUR], keep[STEP][FOUR], take[STEP][FOUR];
    float top[FOUR], total[FOUR];  // m of the spans before these, l of all
};

struct FinishVectors {
    u32 first, group, vectors, first_position, running;

    __device__ __forceinline__ u32 row(u32 v) const { return (first + v) / group; }
    // Spans that the vector sees; 0 for one that is not there.
    __device__ __forceinline__ u32 spans(u32 v) const {
        return first + v >= vectors ? 0 : (running ? 1 : (first_position + row(v)) / SPAN + 1);
    }
};

// Factors of the spans `start`.. `start + many` of all vectors.
__device__ __forceinline__ void factors(FinishShared& shared, const Store& store, u32 kv_head, const FinishVectors& of, u32 start, u32 many) {
    if (threadIdx.x < 2 * many) {
        const u32 s = threadIdx.x / 2, v = threadIdx.x % 2 * 2;
        const uint4 x = load16(store.pairs(kv_head, of.first + v, start + s));
        shared.m[s][v] = f32_of(x.x), shared.l[s][v] = f32_of(x.y);
        shared.m[s][v + 1] = f32_of(x.z), shared.l[s][v + 1] = f32_of(x.w);
    }
    __syncthreads();
    const u32 v = threadIdx.x % FOUR, s = threadIdx.x / FOUR, spans = of.spans(v);
    float old_m = 0.0f, new_m = 0.0f;
    const bool counts = start + s < spans;
    if (counts) {
        old_m = start == 0 ? shared.m[0][v] : shared.top[v];
        for (u32 i = 0; i < s; i++) old_m = larger(old_m, shared.m[i][v]);
        new_m = larger(old_m, shared.m[s][v]);
        shared.keep[s][v] = exp_exact(__fsub_rn(old_m, new_m));
        shared.take[s][v] = exp_exact(__fsub_rn(shared.m[s][v], new_m));
    }
    __syncthreads();
    if (counts && (s == STEP - 1 || start + s == spans - 1)) shared.top[v] = new_m;
}

extern "C" __global__ void __launch_bounds__(THREADS) kvtier_finish(u64 jobs, u32 count, u32 heads, u32 kv_heads, u32 head_dim) {
    KV_SHARED(FinishShared, shared);
    fetch(shared.job, jobs + static_cast<u64>(job_number<FinishJob>(jobs, count, blockIdx.x)) * sizeof(FinishJob));
    __syncthreads();
    const u32 unit = blockIdx.x - shared.job.first, kv_head = unit % kv_heads, group = heads / kv_heads;
    const FinishVectors of = {unit / kv_heads * FOUR, group, shared.job.rows * group, shared.job.first_position, shared.job.running};
    const Store store = {shared.job.store, kv_heads, of.vectors, shared.job.store_spans, head_dim};
    u32 most = 0;
    for (u32 v = 0; v < FOUR; v++) most = of.spans(v) > most ? of.spans(v) : most;
    // 4 channels of one of the vectors, four times at most.
    const u32 quads = head_dim / 4;
    float o[4][4] = {}, l = 0.0f;
    u64 from[4];
    u32 vector[4], spans[4];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const u32 i = threadIdx.x + THREADS * j;
        vector[j] = i / quads < FOUR ? i / quads : 0;
        spans[j] = i / quads < FOUR ? of.spans(vector[j]) : 0;
        from[j] = spans[j] > 0 ? reinterpret_cast<u64>(store.o(kv_head, of.first + vector[j], 0) + i % quads * 4) : 0;
    }
    const u64 stride = static_cast<u64>(head_dim) * 4;
    for (u32 start = 0; start < most; start += STEP) {
        const u32 many = most - start < STEP ? most - start : STEP;
        factors(shared, store, kv_head, of, start, many);
        if (threadIdx.x < FOUR)
            for (u32 i = 0; i < many && start + i < of.spans(threadIdx.x); i++) {
                const float next = shared.l[i][threadIdx.x];
                l = start + i == 0 ? next : __fmaf_rn(l, shared.keep[i][threadIdx.x], __fmul_rn(next, shared.take[i][threadIdx.x]));
            }
#pragma unroll 4
        for (u32 i = 0; i < many; i++) {
            const bool first = start + i == 0;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (start + i >= spans[j]) continue;
                const uint4 x = load16(at<const u8>(from[j] + (start + i) * stride));
                const float keep = first ? 0.0f : shared.keep[i][vector[j]], take = shared.take[i][vector[j]];
                const u32 next[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (u32 c = 0; c < 4; c++)
                    o[j][c] = first ? f32_of(next[c]) : __fmaf_rn(o[j][c], keep, __fmul_rn(f32_of(next[c]), take));
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < FOUR) shared.total[threadIdx.x] = l;
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        if (spans[j] == 0) continue;
        const u32 i = threadIdx.x + THREADS * j, number = of.first + vector[j], head = kv_head * group + number % group;
        float* to = at<float>(shared.job.output) + (static_cast<u64>(number / group) * heads + head) * head_dim + i % quads * 4;
        const float total = shared.total[vector[j]];
        store16(to, floats16(__fdiv_rn(o[j][0], total), __fdiv_rn(o[j][1], total), __fdiv_rn(o[j][2], total), __fdiv_rn(o[j][3], total)));
    }
}
KV_EXPORT(kvtier_finish);
