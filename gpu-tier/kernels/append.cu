// New keys and values, rounded to the stored element, into open blocks: keys channel-major, values token-major.
//
// Grid: x = runs (rows of one sequence in one block), y = KV heads; 128 threads. Sources are f32 [rows][kv_heads][head_dim]. Keys are
// turned through shared memory, 32 tokens by 64 channels at a time, so that tokens that lie side by side are written together.
#include "kv.cuh"

#define THREADS 128
#define TOKENS 32
#define CHANNELS 64

struct AppendRun {
    u64 keys;          // first row, KV head 0
    u64 values;
    u64 section;       // the block's section
    u32 rows;
    u32 slot;          // token of the first row in the block
    u32 kv_heads;
    u32 head_dim;      // a multiple of 16
    u32 block_tokens;  // a multiple of 16
    u32 element_bytes; // 2 bf16, 4 f32
};

struct AppendShared {
    // Channel by token; a column more, so that turning meets no bank twice.
    float keys[CHANNELS][TOKENS + 1];
};

__device__ __forceinline__ float4 load_floats(const float* from) {
    const uint4 x = load16(from);
    const float4 out = {f32_of(x.x), f32_of(x.y), f32_of(x.z), f32_of(x.w)};
    return out;
}

__device__ __forceinline__ u32 bf16_pair(float low, float high) { return bf16_of(low) | static_cast<u32>(bf16_of(high)) << 16; }

// 8 numbers at an element that is a multiple of 8.
__device__ __forceinline__ void store_octet(u64 to, u64 element, const float* x, u32 element_bytes) {
    u8* place = at<u8>(to) + element * element_bytes;
    if (element_bytes == 2) {
        store16(place, make16(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7])));
    } else {
        store16(place, make16(bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])));
        store16(place + 16, make16(bits_of(x[4]), bits_of(x[5]), bits_of(x[6]), bits_of(x[7])));
    }
}

__device__ __forceinline__ void store_one(u64 to, u64 element, float x, u32 element_bytes) {
    if (element_bytes == 2) {
        at<u16>(to)[element] = bf16_of(x);
    } else {
        at<float>(to)[element] = x;
    }
}

// Tokens `first`..`first + TOKENS` of the block, as far as the run has them, of channels `channel`..: from shared memory.
__device__ __forceinline__ void store_keys(const AppendShared& shared, const AppendRun& run, u64 to, u32 first, u32 channel) {
    const u32 end = run.slot + run.rows;
    for (u32 i = threadIdx.x; i < CHANNELS * (TOKENS / 8); i += THREADS) {
        const u32 c = i / (TOKENS / 8), octet = i % (TOKENS / 8), token = first + octet * 8;
        if (channel + c >= run.head_dim || token + 8 <= run.slot || token >= end) continue;
        const u64 element = static_cast<u64>(channel + c) * run.block_tokens + token;
        if (token >= run.slot && token + 8 <= end) {
            float x[8];
#pragma unroll
            for (int t = 0; t < 8; t++) x[t] = shared.keys[c][octet * 8 + t];
            store_octet(to, element, x, run.element_bytes);
        } else {
            for (u32 t = 0; t < 8; t++)
                if (token + t >= run.slot && token + t < end) store_one(to, element + t, shared.keys[c][octet * 8 + t], run.element_bytes);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) kvtier_append(u64 runs) {
    KV_SHARED(AppendShared, shared);
    const AppendRun run = at<const AppendRun>(runs)[blockIdx.x];
    const u32 dim = run.head_dim, stride = run.kv_heads * dim, end = run.slot + run.rows;
    const u64 side = static_cast<u64>(dim) * run.block_tokens * run.element_bytes;
    const u64 keys = run.section + blockIdx.y * 2 * side, values = keys + side;
    const float* new_keys = at<const float>(run.keys) + blockIdx.y * dim;
    const float* new_values = at<const float>(run.values) + blockIdx.y * dim;
    for (u32 i = threadIdx.x; i < run.rows * (dim / 8); i += THREADS) {
        const u32 row = i / (dim / 8), d = i % (dim / 8) * 8;
        const float* from = new_values + static_cast<u64>(row) * stride + d;
        const float4 a = load_floats(from), b = load_floats(from + 4);
        const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        store_octet(values, static_cast<u64>(run.slot + row) * dim + d, x, run.element_bytes);
    }
    for (u32 first = run.slot / TOKENS * TOKENS; first < end; first += TOKENS) {
        for (u32 channel = 0; channel < dim; channel += CHANNELS) {
            for (u32 i = threadIdx.x; i < TOKENS * (CHANNELS / 4); i += THREADS) {
                const u32 token = first + i / (CHANNELS / 4), c = i % (CHANNELS / 4) * 4;
                if (token < run.slot || token >= end || channel + c >= dim) continue;
                const float4 x = load_floats(new_keys + static_cast<u64>(token - run.slot) * stride + channel + c);
                shared.keys[c][token - first] = x.x;
                shared.keys[c + 1][token - first] = x.y;
                shared.keys[c + 2][token - first] = x.z;
                shared.keys[c + 3][token - first] = x.w;
            }
            __syncthreads();
            store_keys(shared, run, keys, first, channel);
            __syncthreads();
        }
    }
}
KV_EXPORT(kvtier_append);
