// Copies a list of pieces, in device memory or mapped host memory: gather and scatter of slices in one launch.
//
// Records run in any order, so their targets must not overlap. 16 bytes at a time where source and target lie alike.
#include "kv.cuh"

#define THREADS 256
// Accesses that a thread has under way: reads of host memory are far.
#define DEEP 4

struct Piece {
    u64 source;
    u64 target;
    u64 bytes;
};

// Bytes `i`, `i + THREADS`, ... of a piece, in units of T.
template <class T>
__device__ __forceinline__ void copy_units(u64 source, u64 target, u64 units) {
    const T* from = at<const T>(source);
    T* to = at<T>(target);
    for (u64 i = threadIdx.x; i < units; i += THREADS) to[i] = from[i];
}

__device__ __forceinline__ void copy_vectors(u64 source, u64 target, u64 vectors) {
    const u8* from = at<const u8>(source);
    u8* to = at<u8>(target);
    u64 i = threadIdx.x;
    for (; i + (DEEP - 1) * THREADS < vectors; i += DEEP * THREADS) {
        uint4 x[DEEP];
#pragma unroll
        for (u32 k = 0; k < DEEP; k++) x[k] = load16(from + (i + k * THREADS) * 16);
#pragma unroll
        for (u32 k = 0; k < DEEP; k++) store16(to + (i + k * THREADS) * 16, x[k]);
    }
    for (; i < vectors; i += THREADS) store16(to + i * 16, load16(from + i * 16));
}

// Grid: x = records; 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) kvtier_gather(u64 pieces, u32 count) {
    if (blockIdx.x >= count) return;
    const Piece piece = at<const Piece>(pieces)[blockIdx.x];
    const u64 apart = (piece.source ^ piece.target) & 15;
    if (apart == 0) {
        // Up to the first multiple of 16, whole vectors, the rest.
        u64 head = (16 - (piece.source & 15)) & 15;
        head = head < piece.bytes ? head : piece.bytes;
        const u64 vectors = (piece.bytes - head) / 16, tail = head + vectors * 16;
        copy_units<u8>(piece.source, piece.target, head);
        copy_vectors(piece.source + head, piece.target + head, vectors);
        copy_units<u8>(piece.source + tail, piece.target + tail, piece.bytes - tail);
    } else if (((piece.source | piece.target | piece.bytes) & 3) == 0) {
        copy_units<u32>(piece.source, piece.target, piece.bytes / 4);
    } else if (((piece.source | piece.target | piece.bytes) & 1) == 0) {
        copy_units<u16>(piece.source, piece.target, piece.bytes / 2);
    } else {
        copy_units<u8>(piece.source, piece.target, piece.bytes);
    }
}
KV_EXPORT(kvtier_gather);

// Zeros to `count` u32. Grid: x = enough for all; 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) kvtier_clear(u64 words, u32 count) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < count) *at<u32>(at<const u64>(words)[i]) = 0;
}
KV_EXPORT(kvtier_clear);
