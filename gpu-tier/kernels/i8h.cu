// i8h: int8 per token and head with an f16 scale (cache-core/src/codec/i8h.rs, docs/forms.md), bit for bit.
//
// Two shapes: values have a scale a row, keys (whose rows are channels) one a lane. Grid: x = parts, y = enough for the part that needs
// most (rows / 8 teams, or lanes / 8 columns of 8 lanes); 64 threads. Layout: values [rows][lanes] bf16, scales [tokens] f16, codes
// [rows / 4][lanes] u32.
#include "grid.cuh"

__device__ __forceinline__ float magnitude_at(const uint4& x, int i) { return f32_of(bits_of(bf16_at(x, i)) & 0x7fffffffu); }

__device__ __forceinline__ u16 scale_of(float most) { return f16_round_up(__fdiv_rn(most, 127.0f)); }

__device__ __forceinline__ float inverse_of(u16 scale) {
    float s = f16_to_f32(scale);
    return s == 0.0f ? 0.0f : __fdiv_rn(1.0f, s);
}

__device__ __forceinline__ u32 code_of(float x, float inverse) {
    return static_cast<u32>(clamp_i32(__float2int_rn(__fmul_rn(x, inverse)), -127, 127)) & 255u;
}

struct EncodeShared {
    Part part;
    float most[2][8][8];  // of a warp: by number in an octet, then octet
};

__device__ __forceinline__ bool tile_has_non_finite(const Tile& tile) {
    bool found = false;
#pragma unroll
    for (int r = 0; r < 8; r++) found = found || has_non_finite(tile.row[r]);
    return found;
}

// Codes of a tile: two groups of 4 rows. `inverse(r, i)` is the factor of row r and lane i.
template <class Inverse>
__device__ __forceinline__ void encode_tile(const Part& part, const Tile& tile, u32 group, u32 octet, Swap swap, Inverse inverse) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Words words = {};
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                words.word[i] |= code_of(bf16_at(tile.row[4 * half + r], i), inverse(4 * half + r, i)) << (8 * r);
        }
        store_words(part.codes, (static_cast<u64>(group) * 2 + half) * part.lanes + octet * 8, words, swap);
    }
}

__device__ __forceinline__ void encode_rows(const Part& part, u32 non_finite, u32 out_of_range) {
    const Place place = place_of(part);
    float most[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    Tile tile = {};
    bool odd = false;
    if (place.live) {
        for (u32 octet = place.octet; octet < place.octets; octet += place.team) {
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
    if (place.live && place.octet == 0) {
        if (outside) tell(part.verdict, out_of_range);
        store16(at<u16>(part.scales) + place.group * 8, pack8(scale));
    }
    for (u32 start = 0; start < place.octets; start += place.team) {
        const u32 octet = start + place.octet;
        const Swap swap = swap_of(octet, place.octets, place.live, place.team);
        if (swap.live && place.octets > place.team) load_tile(tile, part, place.group, octet);
        encode_tile(part, tile, place.group, octet, swap, [&](int r, int) { return inverse[r]; });
    }
}

// Threads that share a lane's rows in a part with a scale a lane: a group of 8 rows each as long as there are enough, so that the source is
// read once. A block takes 64 / slices octets of lanes.
__device__ __forceinline__ u32 slices_of(u32 rows) {
    u32 slices = 8;
    while (slices < 32 && slices * 8 < rows) slices *= 2;
    return slices;
}

__device__ __forceinline__ void encode_lanes(const Part& part, EncodeShared& shared, u32 non_finite, u32 out_of_range) {
    const u32 slices = slices_of(part.rows), wide = GRID_THREADS / slices, groups = part.rows / 8, octets = part.lanes / 8;
    const u32 slice = threadIdx.x / wide, column = threadIdx.x % wide, octet = blockIdx.y * wide + column;
    const bool live = octet < octets;
    float most[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    Tile tile = {};
    bool odd = false;
    for (u32 group = slice; live && group < groups; group += slices) {
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
    // The slices of a warp, then the other warp's.
    for (u32 lanes = wide; lanes < 32; lanes *= 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = __shfl_xor_sync(KV_WARP, most[i], lanes);
            most[i] = x > most[i] ? x : most[i];
        }
    }
    const u32 warp = threadIdx.x / 32;
    if (threadIdx.x % 32 < wide) {
#pragma unroll
        for (int i = 0; i < 8; i++) shared.most[warp][i][column] = most[i];
    }
    __syncthreads();
    u16 scale[8];
    float inverse[8];
    bool outside = false;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float x = shared.most[1 - warp][i][column];
        scale[i] = scale_of(x > most[i] ? x : most[i]);
        inverse[i] = inverse_of(scale[i]);
        outside = outside || !is_finite_f16(scale[i]);
    }
    if (odd) tell(part.verdict, non_finite);
    if (live && slice == 0) {
        if (outside) tell(part.verdict, out_of_range);
        store16(at<u16>(part.scales) + octet * 8, pack8(scale));
    }
    for (u32 start = 0; start < groups; start += slices) {
        const u32 group = start + slice;
        const Swap swap = swap_of(octet, octets, live && group < groups, wide);
        if (swap.live && groups > slices) load_tile(tile, part, group, octet);
        encode_tile(part, tile, group, octet, swap, [&](int, int i) { return inverse[i]; });
    }
}

// Outcomes: `non_finite` when a value is a NaN or an infinity, else `out_of_range` when a scale does not fit f16.
extern "C" __global__ void __launch_bounds__(GRID_THREADS)
    kvtier_i8h_encode(u64 parts, u32 non_finite, u32 out_of_range) {
    KV_SHARED(EncodeShared, shared);
    fetch_record(shared.part, parts);
    const Part part = shared.part;
    if (part.by_lane) {
        encode_lanes(part, shared, non_finite, out_of_range);
    } else {
        encode_rows(part, non_finite, out_of_range);
    }
}
KV_EXPORT(kvtier_i8h_encode);

// Nearest bf16 of each value. Outcome: `damaged` when a scale is one that no encoder writes.
extern "C" __global__ void __launch_bounds__(GRID_THREADS) kvtier_i8h_decode(u64 parts, u32 damaged) {
    KV_SHARED(Part, part);
    fetch_record(part, parts);
    const Place place = place_of(part);
    const u16* scales = at<const u16>(part.scales);
    for (u32 start = 0; start < place.octets; start += place.team) {
        const u32 octet = start + place.octet;
        const Swap swap = swap_of(octet, place.octets, place.live, place.team);
        u16 scale[8] = {};
        bool sound = true;
        if (swap.live) unpack8(load16(scales + (part.by_lane ? octet : place.group) * 8), scale);
#pragma unroll
        for (int i = 0; i < 8; i++) sound = sound && header_is_sound(scale[i], false);
        if (!sound) tell(part.verdict, damaged);
        u16* to = at<u16>(part.values) + static_cast<u64>(place.group) * 8 * part.lanes + octet * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Words words = load_words(part.codes, (static_cast<u64>(place.group) * 2 + half) * part.lanes + octet * 8, swap);
            if (!swap.live) continue;
#pragma unroll
            for (int r = 0; r < 4; r++) {
                u16 row[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float code = __int2float_rn(static_cast<i8>(words.word[i] >> (8 * r)));
                    float factor = f16_to_f32(part.by_lane ? scale[i] : scale[4 * half + r]);
                    row[i] = bf16_of(__fmul_rn(code, factor));
                }
                store16(to + (4 * half + r) * part.lanes, pack8(row));
            }
        }
    }
}
KV_EXPORT(kvtier_i8h_decode);
