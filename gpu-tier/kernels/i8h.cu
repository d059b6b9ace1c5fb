// i8h: int8 per token and head with an f16 scale (cache-core/src/codec/i8h.rs, docs/forms.md), bit for bit.
//
// Two shapes: values have a scale a row, keys (whose rows are channels) one a lane. Grid: x = parts, y = enough for the part that needs
// most (rows / 8 teams, or lanes / 64 columns); 64 threads. Layout: values [rows][lanes] bf16, scales [tokens] f16, codes
// [rows / 4][lanes] u32.
#include "grid.cuh"

// Lanes that a thread block takes of a part with a scale a lane: 8 octets, each shared by 8 threads.
#define COLUMN_LANES 64

__device__ __forceinline__ float magnitude_at(const uint4& x, int i) { return f32_of(bits_of(bf16_at(x, i)) & 0x7fffffffu); }

__device__ __forceinline__ u16 scale_of(float most) { return f16_round_up(__fdiv_rn(most, 127.0f)); }

__device__ __forceinline__ float inverse_of(u16 scale) {
    float s = f16_to_f32(scale);
    return s == 0.0f ? 0.0f : __fdiv_rn(1.0f, s);
}

__device__ __forceinline__ u32 code_of(float x, float inverse) {
    return static_cast<u32>(clamp_i32(__float2int_rn(__fmul_rn(x, inverse)), -127, 127)) & 255u;
}

__device__ __forceinline__ bool tile_has_non_finite(const Tile& tile) {
    bool found = false;
#pragma unroll
    for (int r = 0; r < 8; r++) found = found || has_non_finite(tile.row[r]);
    return found;
}

// Codes of a tile: two groups of 4 rows. `inverse(r, i)` is the factor of row r and lane i.
template <class Inverse>
__device__ __forceinline__ void encode_tile(const Part& part, const Tile& tile, u32 group, u32 octet, Inverse inverse) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 words[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                words[i] |= code_of(bf16_at(tile.row[4 * half + r], i), inverse(4 * half + r, i)) << (8 * r);
        }
        store_words(part.codes, (static_cast<u64>(group) * 2 + half) * part.lanes + octet * 8, words);
    }
}

__device__ __forceinline__ void encode_rows(const Part& part, u32 non_finite, u32 out_of_range) {
    const Place place = place_of(part);
    const u32 octets = part.lanes / 8;
    float most[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    Tile tile;
    bool odd = false;
    if (place.live) {
        for (u32 octet = place.octet; octet < octets; octet += place.team) {
            load_tile(tile, part, place.group, octet);
            odd = odd || tile_has_non_finite(tile);
#pragma unroll
            for (int r = 0; r < 8; r++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float x = magnitude_at(tile.row[r], i);
                    most[r] = x > most[r] ? x : most[r];
                }
            }
        }
    }
    for (u32 lanes = 1; lanes < place.team; lanes *= 2) {
#pragma unroll
        for (int r = 0; r < 8; r++) {
            float x = __shfl_xor_sync(KV_WARP, most[r], lanes);
            most[r] = x > most[r] ? x : most[r];
        }
    }
    if (!place.live) return;
    u16 scale[8];
    float inverse[8];
    bool outside = false;
#pragma unroll
    for (int r = 0; r < 8; r++) {
        scale[r] = scale_of(most[r]);
        inverse[r] = inverse_of(scale[r]);
        outside = outside || !is_finite_f16(scale[r]);
    }
    if (odd) tell(part.verdict, non_finite);
    if (place.octet == 0) {
        if (outside) tell(part.verdict, out_of_range);
        store16(at<u16>(part.scales) + place.group * 8, pack8(scale));
    }
    for (u32 octet = place.octet; octet < octets; octet += place.team) {
        if (octets > place.team) load_tile(tile, part, place.group, octet);
        encode_tile(part, tile, place.group, octet, [&](int r, int) { return inverse[r]; });
    }
}

struct ColumnShared {
    float most[8][COLUMN_LANES];
};

__device__ __forceinline__ void encode_lanes(const Part& part, ColumnShared& shared, u32 non_finite, u32 out_of_range) {
    const u32 slice = threadIdx.x / 8, octet = blockIdx.y * 8 + threadIdx.x % 8, groups = part.rows / 8;
    const bool live = octet * 8 < part.lanes;
    float most[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    Tile tile;
    bool odd = false;
    for (u32 group = slice; live && group < groups; group += 8) {
        load_tile(tile, part, group, octet);
        odd = odd || tile_has_non_finite(tile);
#pragma unroll
        for (int r = 0; r < 8; r++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float x = magnitude_at(tile.row[r], i);
                most[i] = x > most[i] ? x : most[i];
            }
        }
    }
    float4* mine = reinterpret_cast<float4*>(&shared.most[slice][threadIdx.x % 8 * 8]);
    float4 low = {most[0], most[1], most[2], most[3]}, high = {most[4], most[5], most[6], most[7]};
    mine[0] = low;
    mine[1] = high;
    __syncthreads();
    if (!live) return;
    u16 scale[8];
    float inverse[8];
    bool outside = false;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float all = 0.0f;
        for (int other = 0; other < 8; other++) {
            float x = shared.most[other][threadIdx.x % 8 * 8 + i];
            all = x > all ? x : all;
        }
        scale[i] = scale_of(all);
        inverse[i] = inverse_of(scale[i]);
        outside = outside || !is_finite_f16(scale[i]);
    }
    if (odd) tell(part.verdict, non_finite);
    if (slice == 0) {
        if (outside) tell(part.verdict, out_of_range);
        store16(at<u16>(part.scales) + octet * 8, pack8(scale));
    }
    for (u32 group = slice; group < groups; group += 8) {
        if (groups > 8) load_tile(tile, part, group, octet);
        encode_tile(part, tile, group, octet, [&](int, int i) { return inverse[i]; });
    }
}

// Outcomes: `non_finite` when a value is a NaN or an infinity, else `out_of_range` when a scale does not fit f16.
extern "C" __global__ void __launch_bounds__(GRID_THREADS)
    kvtier_i8h_encode(u64 parts, u32 non_finite, u32 out_of_range) {
    KV_SHARED(ColumnShared, shared);
    const Part part = at<const Part>(parts)[blockIdx.x];
    if (part.by_lane) {
        encode_lanes(part, shared, non_finite, out_of_range);
    } else {
        encode_rows(part, non_finite, out_of_range);
    }
}
KV_EXPORT(kvtier_i8h_encode);

// Nearest bf16 of each value. Outcome: `damaged` when a scale is one that no encoder writes.
extern "C" __global__ void __launch_bounds__(GRID_THREADS) kvtier_i8h_decode(u64 parts, u32 damaged) {
    const Part part = at<const Part>(parts)[blockIdx.x];
    const Place place = place_of(part);
    if (!place.live) return;
    const u16* scales = at<const u16>(part.scales);
    for (u32 octet = place.octet; octet < part.lanes / 8; octet += place.team) {
        u16 scale[8];
        unpack8(load16(scales + (part.by_lane ? octet : place.group) * 8), scale);
        bool sound = true;
#pragma unroll
        for (int i = 0; i < 8; i++) sound = sound && header_is_sound(scale[i], false);
        if (!sound) tell(part.verdict, damaged);
        u16* to = at<u16>(part.values) + static_cast<u64>(place.group) * 8 * part.lanes + octet * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 words[8];
            load_words(part.codes, (static_cast<u64>(place.group) * 2 + half) * part.lanes + octet * 8, words);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                u16 row[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float code = __int2float_rn(static_cast<i8>(words[i] >> (8 * r)));
                    float factor = f16_to_f32(part.by_lane ? scale[i] : scale[4 * half + r]);
                    row[i] = bf16_of(__fmul_rn(code, factor));
                }
                store16(to + (4 * half + r) * part.lanes, pack8(row));
            }
        }
    }
}
KV_EXPORT(kvtier_i8h_decode);
