// The words of CUDA C++ that gpu-tier/kernels use, for a host compiler: each thread of a block is a fiber (fibers.cpp).
//
// A kernel file includes this through kv.cuh when no CUDA compiler reads it. What lanes exchange, and what orders threads, happens in
// fibers.cpp, which a sanitizer does not instrument: shuffles order nothing, as in CUDA, barriers do.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned int x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};

// What a lane shows to its warp.
struct ShimWords {
    unsigned int word[6];
};

struct ShimIndex {
    unsigned int x, y, z;
};

// The running thread of the running block, as its kernel sees it.
struct ShimThread {
    ShimIndex thread, block, block_dim, grid_dim;
    void* shared;
};

extern "C" {
ShimThread* shim_thread();
void shim_syncthreads(unsigned int line);
void shim_syncwarp(unsigned int line);
// Shows words to the warp; what all 32 lanes show, until the next collective of the running lane.
const ShimWords* shim_share(unsigned int line, unsigned int mask, const ShimWords& words);
// Asynchronous copies of the running thread: starts one, ends a group, takes the oldest of the groups that are not to be pending any
// more (0 when there is none).
void shim_start_copy(void* to, const void* from);
void shim_end_group();
int shim_take_copy(unsigned int pending, void** to, const void** from);
[[noreturn]] void shim_fail(const char* problem, unsigned int line);
void shim_register(const char* name, void (*run)(void**), const size_t* sizes, size_t parameters);
}

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__

#define threadIdx (shim_thread()->thread)
#define blockIdx (shim_thread()->block)
#define blockDim (shim_thread()->block_dim)
#define gridDim (shim_thread()->grid_dim)

#define __syncthreads() shim_syncthreads(__LINE__)
#define __syncwarp(...) shim_syncwarp(__LINE__)

// The block's shared struct: fresh memory for each block, full of 0xff.
#define KV_SHARED(type, name)                                                    \
    static_assert(sizeof(type) <= 48 * 1024, "static shared memory of a block"); \
    type& name = *static_cast<type*>(shim_thread()->shared)

// Memory behind an address from a table. The driver double marks addresses of the device in bits 60 and 61.
inline void* shim_address(unsigned long long address) {
    return reinterpret_cast<void*>(address & ~(3ull << 60));
}

// Offers a kernel to shim_launch under its name.
template <auto Kernel>
struct ShimExport;
template <class... A, void (*Kernel)(A...)>
struct ShimExport<Kernel> {
    template <size_t... I>
    static void call(void** p, std::index_sequence<I...>) {
        Kernel(*static_cast<A*>(p[I])...);
    }
    static void run(void** p) { call(p, std::index_sequence_for<A...>()); }
    explicit ShimExport(const char* name) {
        static const size_t sizes[] = {sizeof(A)..., 0};
        shim_register(name, run, sizes, sizeof...(A));
    }
};
#define KV_EXPORT(kernel) static ShimExport<kernel> shim_export_##kernel(#kernel)

// --- arithmetic: one operation each, rounded to nearest even (the file is compiled with -ffp-contract=off) ----------------

template <class To, class From>
inline To shim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned int x) { return shim_bits<float>(x); }
inline unsigned int __float_as_uint(float x) { return shim_bits<unsigned int>(x); }
inline float __int_as_float(int x) { return shim_bits<float>(x); }
inline int __float_as_int(float x) { return shim_bits<int>(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
// A NaN gives 0, numbers out of range the nearest (PTX, cvt).
inline int __float2int_rn(float x) {
    if (x != x) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x <= -2147483648.0f) return -2147483647 - 1;
    return static_cast<int>(__builtin_rintf(x));
}
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Bytes of b:a picked by the nibbles of s.
inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int s) {
    unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
    unsigned int out = 0;
    for (int i = 0; i < 4; i++) out |= static_cast<unsigned int>(both >> (8 * (s >> (4 * i) & 7)) & 255) << (8 * i);
    return out;
}

inline float f16_to_f32(unsigned short bits) { return static_cast<float>(shim_bits<_Float16>(bits)); }
inline unsigned short f16_of(float x) { return shim_bits<unsigned short>(static_cast<_Float16>(x)); }

inline int dot2_low(unsigned int a, unsigned int b, int sum) {
    return sum + static_cast<short>(a) * static_cast<signed char>(b) +
           static_cast<short>(a >> 16) * static_cast<signed char>(b >> 8);
}
inline int dot2_high(unsigned int a, unsigned int b, int sum) { return dot2_low(a, b >> 16, sum); }

// --- atomics, lanes, asynchronous copies ------------------------------------------------------------------------------------

inline unsigned int atomicMax(unsigned int* to, unsigned int value) {
    unsigned int old = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(to, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
inline unsigned int atomicAdd(unsigned int* to, unsigned int value) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

inline unsigned int shim_lane() { return shim_thread()->thread.x & 31; }
template <class T>
inline T shim_shuffle(unsigned int line, unsigned int mask, T value, unsigned int source) {
    return shim_bits<T>(shim_share(line, mask, {{shim_bits<unsigned int>(value)}})[source].word[0]);
}
inline unsigned int shim_ballot(unsigned int line, unsigned int mask, unsigned int bit) {
    const ShimWords* all = shim_share(line, mask, {{bit}});
    unsigned int out = 0;
    for (unsigned int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) out |= all[lane].word[0] << lane;
    return out;
}
#define __shfl_sync(mask, value, source) shim_shuffle(__LINE__, mask, value, (source) & 31)
#define __shfl_xor_sync(mask, value, lanes) shim_shuffle(__LINE__, mask, value, shim_lane() ^ (lanes))
#define __shfl_up_sync(mask, value, lanes) \
    shim_shuffle(__LINE__, mask, value, shim_lane() < (lanes) ? shim_lane() : shim_lane() - (lanes))
#define __shfl_down_sync(mask, value, lanes) \
    shim_shuffle(__LINE__, mask, value, shim_lane() + (lanes) > 31 ? shim_lane() : shim_lane() + (lanes))
#define __ballot_sync(mask, bit) shim_ballot(__LINE__, mask, (bit) ? 1 : 0)

// Matrix units: each lane takes the rows of a and the columns of b that its part of the sum needs from the lanes that have them, two of the 16
// products at a time.
inline void multiply_bf16(float4& sum, const uint4& a, unsigned int b_low, unsigned int b_high) {
    const unsigned int row = shim_lane() / 4, column = shim_lane() % 4 * 2;
    float out[4] = {sum.x, sum.y, sum.z, sum.w};
    for (unsigned int pair = 0; pair < 8; pair++) {
        const unsigned int among = pair % 4;
        const unsigned int a_words[2] = {__shfl_sync(0xffffffffu, pair < 4 ? a.x : a.z, 4 * row + among),
                                         __shfl_sync(0xffffffffu, pair < 4 ? a.y : a.w, 4 * row + among)};
        const unsigned int b_words[2] = {__shfl_sync(0xffffffffu, pair < 4 ? b_low : b_high, 4 * column + among),
                                         __shfl_sync(0xffffffffu, pair < 4 ? b_low : b_high, 4 * (column + 1) + among)};
        for (int i = 0; i < 4; i++) {
            const unsigned int x = a_words[i / 2], y = b_words[i % 2];
            out[i] += __uint_as_float(x << 16) * __uint_as_float(y << 16);
            out[i] += __uint_as_float(x & 0xffff0000u) * __uint_as_float(y & 0xffff0000u);
        }
    }
    sum = {out[0], out[1], out[2], out[3]};
}

// A copy happens when it is waited for, as late as CUDA allows: a missing wait shows.
inline void copy16_async(void* shared, const void* global) {
    if (((uintptr_t)shared | (uintptr_t)global) & 15) shim_fail("misaligned asynchronous copy", 0);
    shim_start_copy(shared, global);
}
inline void async_commit() { shim_end_group(); }
template <int Pending>
inline void async_wait() {
    void* to;
    const void* from;
    while (shim_take_copy(Pending, &to, &from)) *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

// --- matrices across the lanes of a warp (PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions") ---------------------

inline float shim_bf16(unsigned int word, unsigned int half) {
    return shim_bits<float>(half ? word & 0xffff0000u : word << 16);
}

// mma.m16n8k16, bf16 with f32 sums: products are exact, added in f64 and rounded once.
inline void shim_multiply_add(unsigned int line, float* d, const unsigned int* a, const unsigned int* b) {
    const ShimWords* all = shim_share(line, 0xffffffffu, {{a[0], a[1], a[2], a[3], b[0], b[1]}});
    for (unsigned int i = 0; i < 4; i++) {
        const unsigned int row = shim_lane() / 4 + i / 2 * 8, column = shim_lane() % 4 * 2 + i % 2;
        double sum = 0;
        for (unsigned int k = 0; k < 16; k++) {
            const unsigned int pair = k % 8 / 2, side = k / 8;
            const float left = shim_bf16(all[row % 8 * 4 + pair].word[row / 8 + 2 * side], k % 2);
            sum += static_cast<double>(left) * shim_bf16(all[column * 4 + pair].word[4 + side], k % 2);
        }
        d[i] = static_cast<float>(sum + d[i]);
    }
}

// ldmatrix.x4: lanes 8 i.. name the rows of matrix i.
template <bool Transposed>
inline void shim_load_matrices(unsigned int line, unsigned int* to, const void* row) {
    if ((uintptr_t)row & 15) shim_fail("misaligned row of a matrix", line);
    const unsigned long long address = (uintptr_t)row;
    const ShimWords* all =
        shim_share(line, 0xffffffffu, {{static_cast<unsigned int>(address), static_cast<unsigned int>(address >> 32)}});
    const unsigned int outer = shim_lane() / 4, inner = shim_lane() % 4 * 2;
    for (unsigned int i = 0; i < 4; i++) {
        const auto at = [&](unsigned int r, unsigned int column) -> unsigned int {
            const ShimWords& words = all[8 * i + r];
            const unsigned long long start = static_cast<unsigned long long>(words.word[1]) << 32 | words.word[0];
            return reinterpret_cast<const unsigned short*>(start)[column];
        };
        to[i] = Transposed ? at(inner, outer) | at(inner + 1, outer) << 16 : at(outer, inner) | at(outer, inner + 1) << 16;
    }
}

#define multiply_add(d, a, b) shim_multiply_add(__LINE__, d, a, b)
#define load_matrices(to, row) shim_load_matrices<false>(__LINE__, to, row)
#define load_transposed(to, row) shim_load_matrices<true>(__LINE__, to, row)

// Nearest bf16, ties to even; any NaN becomes 0x7fff (PTX, cvt).
inline unsigned int shim_bf16_of(float x) {
    const unsigned int bits = shim_bits<unsigned int>(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline unsigned int pair_of(float low, float high) { return shim_bf16_of(low) | shim_bf16_of(high) << 16; }
inline unsigned int add_pairs(unsigned int a, unsigned int b) {
    return pair_of(shim_bf16(a, 0) + shim_bf16(b, 0), shim_bf16(a, 1) + shim_bf16(b, 1));
}
