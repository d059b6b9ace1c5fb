// Matrix instructions over bf16, and the tile of the kernels that use them (attend_mma.cu).
#pragma once

#include "ring.cuh"
#include "tile.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
// d += a b: a 16 x 16 by rows, b 16 x 8 by columns, bf16; d f32. PTX ISA, "mma.m16n8k16 with floating point type".
__device__ __forceinline__ void multiply_add(float* d, const u32* a, const u32* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 16-bit numbers from shared memory: lanes 8 i.. name the rows of matrix i.
__device__ __forceinline__ void load_matrices(u32* to, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// The same, each transposed.
__device__ __forceinline__ void load_transposed(u32* to, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// Sums of two pairs of bf16, as one operation each.
__device__ __forceinline__ u32 add_pairs(u32 a, u32 b) {
    u32 out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return out;
}

// Two f32 as bf16, to nearest even: the first in the low half.
__device__ __forceinline__ u32 pair_of(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
#endif

// Codes as pairs of bf16, exactly: 0x4300 | n is 128 + n for 7 bits n.

// 8 bits, signed, of one word: bytes 0 and 2, then 1 and 3. Bit 7 turns -128 into -256.
__device__ __forceinline__ void unpack8(u32 word, u32* pairs) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 bytes = word >> (8 * i);
        pairs[i] = add_pairs((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0xc300c300u);
    }
}

// 4 bits of one word, less 8: nibbles i and i + 4.
__device__ __forceinline__ void unpack4(u32 word, u32* pairs) {
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = add_pairs((word >> (4 * i) & 0x000f000fu) | 0x43004300u, 0xc308c308u);
}

// Where row i of the larger side stands in the order in which those pairs come: along k, bf16 by row, codes by word (16: bf16).
__device__ __forceinline__ u32 slot_of(u32 i, u32 bits) {
    if (bits == 16) return i;
    if (bits == 8) return (i & ~15u) + (i & 1) * 8 + (i >> 2 & 3) * 2 + (i >> 1 & 1);
    return (i & ~31u) + (i >> 1 & 1) * 16 + (i & 1) * 8 + (i >> 3 & 3) * 2 + (i >> 2 & 1);
}

template <int V, int C>
struct MatrixShared : TileShared<V, C> {
    static constexpr int STAGES = C == 4 ? 3 : 4;
    static constexpr int STAGE_BYTES = C == 4 ? 8448 : 4608;
    alignas(16) u8 ring[STAGES][STAGE_BYTES];
    // The smaller side of the products, queries or probabilities, as two bf16 whose sum it is to 16 bits: rows by vector, so far apart
    // that 8 of them meet all banks.
    alignas(16) u16 small[2][V][64 * C + 8];
    float query[V][64 * C + 4];
    // Closed blocks: [head_dim] centres | [head_dim] half-ranges of keys, scales of the tokens' keys, scales or centres |
    // half-ranges of their values. f16.
    alignas(16) u16 header[2 * 64 * C];
    alignas(16) u16 key_scale[SPAN];
    alignas(16) u16 value_scale[2 * SPAN];
    // What 4-bit codes do not have of a product.
    float base[V];

    __device__ __forceinline__ float& query_at(u32 channel, u32 v) { return query[v][channel]; }
};

template <int V, int C>
using MatrixTile = Tile<V, C, MatrixShared<V, C>>;

// Rows of bf16, and of words of codes.
template <int V, int C, int Pad, int Unit>
using MatrixRing = Ring<MatrixShared<V, C>::STAGES, MatrixShared<V, C>::STAGE_BYTES, Pad, Unit>;
#define EXACT_PAD 16
#define EXACT_UNIT 16
#define CODES_PAD 32
#define CODES_UNIT 4

// Sums of a warp: of each 64 lanes (tokens in scores, channels in sums) its 32, for all vectors, as two tiles of 16 by eights of vectors.
template <int V, int Chunks>
struct Sums {
    float d[Chunks][2][V / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int c = 0; c < Chunks; c++) {
#pragma unroll
            for (int n = 0; n < V / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) d[c][0][n][i] = d[c][1][n][i] = 0.0f;
            }
        }
    }
};

// First lane of this warp's part of chunk c, and the lane of `half` of tile j of it that this thread has sums of.
__device__ __forceinline__ u32 first_lane(int c) { return 64 * c + threadIdx.x / 32 * 32; }
template <bool Exact>
__device__ __forceinline__ u32 lane_of(int c, int j, int half) {
    const u32 row = threadIdx.x % 32 / 4;
    return first_lane(c) + (Exact ? 16 * j + 8 * half + row : 4 * row + 2 * j + half);
}

// High and low parts of 16 rows of the smaller side, from row `slot`.
template <int V, int C>
__device__ __forceinline__ void load_small(const MatrixTile<V, C>& tile, u32 (*parts)[4], u32 slot) {
    const u32 matrix = threadIdx.x % 32 / 8, row = threadIdx.x % 8;
#pragma unroll
    for (int n = 0; n < V / 8; n++) load_matrices(parts[n], &tile.shared.small[matrix / 2][8 * n + row][slot + matrix % 2 * 8]);
}

template <int V>
__device__ __forceinline__ void multiply_both(float (*d)[4], const u32* a, u32 (*parts)[4]) {
#pragma unroll
    for (int n = 0; n < V / 8; n++) {
        multiply_add(d[n], a, parts[n]);
        multiply_add(d[n], a, parts[n] + 2);
    }
}

// Adds a stage of bf16: `rows` of it, a multiple of 16, whose first is row `slot` of the smaller side; `tiles` 16s of lanes are there.
template <int V, int C, int Chunks>
__device__ __forceinline__ void add_exact(const MatrixTile<V, C>& tile, Sums<V, Chunks>& sums, const u8* stage, u32 pitch, u32 rows, u32 slot, u32 tiles) {
    const u32 matrix = threadIdx.x % 32 / 8;
    const u8* from = stage + (matrix / 2 * 8 + threadIdx.x % 8) * pitch + (matrix % 2) * 16;
#pragma unroll 1
    for (u32 k = 0; k < rows; k += 16) {
        u32 parts[V / 8][4];
        load_small(tile, parts, slot + k);
#pragma unroll
        for (int c = 0; c < Chunks; c++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (first_lane(c) / 16 + j >= tiles) continue;
                u32 a[4];
                load_transposed(a, from + (first_lane(c) + 16 * j) * 2);
                multiply_both<V>(sums.d[c][j], a, parts);
            }
        }
        from += 16 * pitch;
    }
}

// Adds a stage of codes: `rows` words of each lane, a multiple of 4.
template <u32 Bits, int V, int C, int Chunks>
__device__ __forceinline__ void add_codes(const MatrixTile<V, C>& tile, Sums<V, Chunks>& sums, const u8* stage, u32 pitch, u32 rows, u32 slot, u32 tiles) {
    const u8* from = stage + threadIdx.x % 4 * pitch + threadIdx.x % 32 / 4 * 16;
#pragma unroll 1
    for (u32 r = 0; r < rows; r += 4) {
        u32 parts[8 / Bits][V / 8][4];
#pragma unroll
        for (u32 step = 0; step < 8 / Bits; step++) load_small(tile, parts[step], slot + 16 * step);
#pragma unroll
        for (int c = 0; c < Chunks; c++) {
            if (first_lane(c) / 16 >= tiles) continue;
            const uint4 words = *reinterpret_cast<const uint4*>(from + first_lane(c) * 4);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 low[4], high[4];
                if (Bits == 8) {
                    unpack8(j == 0 ? words.x : words.z, low);
                    unpack8(j == 0 ? words.y : words.w, high);
                } else {
                    unpack4(j == 0 ? words.x : words.z, low);
                    unpack4(j == 0 ? words.y : words.w, high);
                }
#pragma unroll
                for (u32 step = 0; step < 8 / Bits; step++) {
                    const u32 a[4] = {low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1]};
                    multiply_both<V>(sums.d[c][j], a, parts[step]);
                }
            }
        }
        from += 4 * pitch;
        slot += 4 * 32 / Bits;
    }
}
