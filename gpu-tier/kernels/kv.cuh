// What every kernel file includes: types, exactly rounded arithmetic, 16-byte accesses, asynchronous copies.
//
// No CUDA header is used, so that NVRTC compiles the same text without an include folder; a host compiler gets the few words of
// CUDA that the kernels use from cuda_host.h (tests/cuda-shim/shim). Rules for kernels:
//   - one shared struct a kernel, declared with KV_SHARED, so that a host build can lay it out;
//   - collectives of a warp name all 32 lanes, and whole warps reach them;
//   - encoders use the functions here for arithmetic: each is one operation, rounded to nearest even, never fused or flushed.
#pragma once

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#include "cuda_host.h"
#else
#define KV_SHARED(type, name) __shared__ type name
#define KV_EXPORT(kernel)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;
typedef long long i64;

#define KV_WARP 0xffffffffu

// --- addresses -------------------------------------------------------------------------------------------------------

// An address from a table: of device memory or mapped host memory, never of shared memory, so that accesses are global ones.
template <class T>
__device__ __forceinline__ T* at(u64 address) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    T* out = reinterpret_cast<T*>(address);
    __builtin_assume(__isGlobal(out));
    return out;
#else
    return static_cast<T*>(shim_address(address));
#endif
}

// 16 bytes of global memory in one access, whatever the compiler knows of the pointer.
__device__ __forceinline__ uint4 load16(const void* from) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    uint4 out;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from)
                 : "memory");
    return out;
#else
    return *static_cast<const uint4*>(from);
#endif
}

__device__ __forceinline__ void store16(void* to, uint4 value) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#else
    *static_cast<uint4*>(to) = value;
#endif
}

__device__ __forceinline__ uint4 make16(u32 x, u32 y, u32 z, u32 w) {
    uint4 out;
    out.x = x;
    out.y = y;
    out.z = z;
    out.w = w;
    return out;
}

// Word i of 16 bytes; i is known when the loop around it is unrolled.
__device__ __forceinline__ u32 word_of(const uint4& x, int i) { return i == 0 ? x.x : (i == 1 ? x.y : (i == 2 ? x.z : x.w)); }

// The thread block's record of a table, to shared memory by 16 bytes a thread: fields that each warp reads by itself cost a sector each. Ends
// with a barrier.
template <class Record>
__device__ __forceinline__ void fetch_record(Record& to, u64 table) {
    static_assert(sizeof(Record) % 32 == 0, "records fill their sectors");
    const u64 from = table + static_cast<u64>(blockIdx.x) * sizeof(Record) + threadIdx.x * 16;
    if (threadIdx.x < sizeof(Record) / 16) reinterpret_cast<uint4*>(&to)[threadIdx.x] = load16(at<const u8>(from));
    __syncthreads();
}

// What the neighbour, lane ^ 1, gives. Whole warps reach it.
__device__ __forceinline__ u32 swap_with_neighbour(u32 x) { return __shfl_xor_sync(KV_WARP, x, 1); }

// --- arithmetic ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float f32_of(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }

// bf16 in the low half of a word, and in the high half.
__device__ __forceinline__ float bf16_low(u32 word) { return f32_of(word << 16); }
__device__ __forceinline__ float bf16_high(u32 word) { return f32_of(word & 0xffff0000u); }

// Nearest bf16, ties to even; a NaN stays one (made quiet).
__device__ __forceinline__ u16 bf16_of(float x) {
    u32 bits = bits_of(x);
    u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
__device__ __forceinline__ float f16_to_f32(u16 bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}

// Nearest f16, ties to even; infinite beyond 65519.
__device__ __forceinline__ u16 f16_of(float x) {
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

// sum + a.lo * b.byte[0] + a.hi * b.byte[1]: two 16-bit numbers with the low two of four bytes, all signed.
__device__ __forceinline__ i32 dot2_low(u32 a, u32 b, i32 sum) {
    i32 out;
    asm("dp2a.lo.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    return out;
}

// The same with the high two bytes.
__device__ __forceinline__ i32 dot2_high(u32 a, u32 b, i32 sum) {
    i32 out;
    asm("dp2a.hi.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    return out;
}

// sum += a b on matrix units, for a warp's tiles of 16 by 16 and 16 by 8 bf16, each thread with its fragments (PTX ISA, "Matrix Fragments for
// mma.m16n8k16").
__device__ __forceinline__ void multiply_bf16(float4& sum, const uint4& a, u32 b_low, u32 b_high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b_low), "r"(b_high));
}

// Starts a copy of 16 bytes, both sides aligned; it has happened after async_wait and, for other threads, a barrier.
__device__ __forceinline__ void copy16_async(void* shared, const void* global) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(__cvta_generic_to_global(global)) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until at most `Pending` of this thread's groups are under way.
template <int Pending>
__device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(Pending) : "memory");
}
#endif

__device__ __forceinline__ bool is_finite_bf16(u32 bits) { return (bits & 0x7f80u) != 0x7f80u; }
__device__ __forceinline__ bool is_finite_f16(u16 bits) { return (bits & 0x7c00u) != 0x7c00u; }

// Least f16 that is not below x, for x >= 0; not finite when there is none.
__device__ __forceinline__ u16 f16_round_up(float x) {
    u16 rounded = f16_of(x);
    return static_cast<u16>(rounded + (f16_to_f32(rounded) < x ? 1 : 0));
}

// Whether a header of given bits is one that an encoder writes.
__device__ __forceinline__ bool header_is_sound(u16 bits, bool may_be_negative) {
    return is_finite_f16(bits) && (may_be_negative || (bits & 0x8000u) == 0);
}

__device__ __forceinline__ i32 clamp_i32(i32 x, i32 low, i32 high) { return x < low ? low : (x > high ? high : x); }

// Tells an outcome: the largest of what the parts of a job say stays.
__device__ __forceinline__ void tell(u64 verdict, u32 outcome) { atomicMax(at<u32>(verdict), outcome); }
