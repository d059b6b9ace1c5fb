// Merges (m, l, o) partials in span order and divides (gpu-tier/src/attention.rs), bit for bit as the cpu device.
//
// Grid: x = (row, head) of all jobs; 64 threads. What the merge multiplies with follows from the m alone, 64 partials at a time; then
// a thread takes every 64th channel through them in order.
#include "attention.cuh"

#define THREADS 64

struct FinishJob {
    u64 from;        // f32, (m, l, o) each
    u64 output;      // f32 [rows][heads][head_dim]
    u64 from_row;    // f32 between rows, heads and spans of `from`
    u64 from_head;
    u64 from_span;
    u32 first;       // first (row, head) of the launch
    u32 first_position;
    u32 running;     // one state, merged already
    u32 heads;
    u32 head_dim;    // a multiple of 16, at most 256
    u32 unused;
};

struct FinishShared {
    float keep[THREADS], take[THREADS], l[THREADS];
    float warp_max[2];
    float m, total;
};

// The largest of this thread's number and of those before it, and of `before`.
__device__ __forceinline__ float running_max(float x, float before, float* warp_max) {
    const u32 lane = threadIdx.x % 32;
    for (u32 lanes = 1; lanes < 32; lanes *= 2) {
        const float other = __shfl_up_sync(KV_WARP, x, lanes);
        x = lane >= lanes ? larger(other, x) : x;
    }
    if (lane == 31) warp_max[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x >= 32) x = larger(warp_max[0], x);
    return larger(before, x);
}

extern "C" __global__ void __launch_bounds__(THREADS) kvtier_finish(u64 jobs, u32 count) {
    KV_SHARED(FinishShared, shared);
    const FinishJob job = at<const FinishJob>(jobs)[job_number<FinishJob>(jobs, count, blockIdx.x)];
    const u32 vector = blockIdx.x - job.first, row = vector / job.heads, head = vector % job.heads;
    const u32 spans = job.running ? 1 : (job.first_position + row) / SPAN + 1;
    const float* from = at<const float>(job.from) + row * job.from_row + head * job.from_head;
    float* output = at<float>(job.output) + static_cast<u64>(vector) * job.head_dim;
    float o[4] = {0, 0, 0, 0};
    float m = from[0], l = 0.0f;
    for (u32 start = 0; start < spans; start += THREADS) {
        const u32 many = spans - start < THREADS ? spans - start : THREADS, mine = threadIdx.x < many ? threadIdx.x : many - 1;
        const float* partial = from + (start + mine) * job.from_span;
        const float this_m = partial[0];
        const float new_m = running_max(this_m, m, shared.warp_max);
        // The m before this partial: the thread's before, or what the last 64 left.
        const float lower = __shfl_up_sync(KV_WARP, new_m, 1);
        float old_m = threadIdx.x % 32 > 0 ? lower : m;
        if (threadIdx.x == 32) old_m = larger(m, shared.warp_max[0]);
        shared.keep[threadIdx.x] = exp_exact(__fsub_rn(old_m, new_m));
        shared.take[threadIdx.x] = exp_exact(__fsub_rn(this_m, new_m));
        shared.l[threadIdx.x] = partial[1];
        if (threadIdx.x == many - 1) shared.m = new_m;
        __syncthreads();
        for (u32 i = 0; i < many; i++) {
            const float keep = shared.keep[i], take = shared.take[i];
            const float* next = from + (start + i) * job.from_span + 2;
            const bool first = start + i == 0;
            if (threadIdx.x == 0) l = first ? shared.l[0] : __fmaf_rn(l, keep, __fmul_rn(shared.l[i], take));
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                const u32 d = threadIdx.x + 64 * c;
                if (d < job.head_dim) o[c] = first ? next[d] : __fmaf_rn(o[c], keep, __fmul_rn(next[d], take));
            }
        }
        m = shared.m;
        __syncthreads();
    }
    if (threadIdx.x == 0) shared.total = l;
    __syncthreads();
    l = shared.total;
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
        const u32 d = threadIdx.x + 64 * c;
        if (d < job.head_dim) output[d] = __fdiv_rn(o[c], l);
    }
}
KV_EXPORT(kvtier_finish);
