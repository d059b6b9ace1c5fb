// kc4 of keys and vt4 of values: 4 bits between a row's extremes (cache-core/src/codec/kc4vt4.rs, docs/forms.md), bit for bit.
//
// Grid: x = parts, y = enough for rows / 8 teams of the part with most; 64 threads. Layout: values [rows][lanes] bf16, header
// [rows] centres | [rows] half-ranges f16, codes [rows / 8][lanes] u32.
#include "grid.cuh"

struct RowExtremes {
    float low[8], high[8];
};

__device__ __forceinline__ void take_extremes(RowExtremes& rows, const Tile& tile) {
#pragma unroll
    for (int r = 0; r < 8; r++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = bf16_at(tile.row[r], i);
            rows.low[r] = x < rows.low[r] ? x : rows.low[r];
            rows.high[r] = x > rows.high[r] ? x : rows.high[r];
        }
    }
}

// Centre and half-range of a row, as f16 bits; not finite when they do not fit.
__device__ __forceinline__ void row_header(float low, float high, u16& centre, u16& half_range) {
    centre = f16_of(__fadd_rn(__fmul_rn(__fadd_rn(low, high), 0.5f), 0.0f));
    float c = f16_to_f32(centre);
    float above = __fsub_rn(high, c), below = __fsub_rn(c, low);
    half_range = f16_round_up(above > below ? above : below);
}

// Adds the codes of a row to the words of its lanes.
__device__ __forceinline__ void add_codes(Words& words, const uint4& row, int r, u16 centre, u16 half_range) {
    float c = f16_to_f32(centre), half = f16_to_f32(half_range);
    float factor = half == 0.0f ? 0.0f : __fdiv_rn(7.5f, half);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float scaled = __fmul_rn(__fadd_rn(__fsub_rn(bf16_at(row, i), c), half), factor);
        words.word[i] |= static_cast<u32>(clamp_i32(__float2int_rn(scaled), 0, 15)) << (4 * r);
    }
}

// Outcomes: `non_finite` when a value is a NaN or an infinity, else `out_of_range` when a header does not fit f16.
extern "C" __global__ void __launch_bounds__(GRID_THREADS)
    kvtier_kc4vt4_encode(u64 parts, u32 non_finite, u32 out_of_range) {
    KV_SHARED(Part, part);
    fetch_record(part, parts);
    const Place place = place_of(part);
    RowExtremes rows;
#pragma unroll
    for (int r = 0; r < 8; r++) {
        rows.low[r] = f32_of(0x7f800000u);
        rows.high[r] = f32_of(0xff800000u);
    }
    Tile tile = {};
    bool odd = false;
    if (place.live) {
        for (u32 octet = place.octet; octet < place.octets; octet += place.team) {
            load_tile(tile, part, place.group, octet);
            take_extremes(rows, tile);
#pragma unroll
            for (int r = 0; r < 8; r++) odd = odd || has_non_finite(tile.row[r]);
        }
    }
    for (u32 lanes = 1; lanes < place.team; lanes *= 2) {
#pragma unroll
        for (int r = 0; r < 8; r++) {
            float low = __shfl_xor_sync(KV_WARP, rows.low[r], lanes);
            float high = __shfl_xor_sync(KV_WARP, rows.high[r], lanes);
            rows.low[r] = low < rows.low[r] ? low : rows.low[r];
            rows.high[r] = high > rows.high[r] ? high : rows.high[r];
        }
    }
    u16 centre[8], half_range[8];
    bool outside = false;
#pragma unroll
    for (int r = 0; r < 8; r++) {
        row_header(rows.low[r], rows.high[r], centre[r], half_range[r]);
        outside = outside || !is_finite_f16(centre[r]) || !is_finite_f16(half_range[r]);
    }
    if (odd) tell(part.verdict, non_finite);
    if (place.live && place.octet == 0) {
        if (outside) tell(part.verdict, out_of_range);
        u16* to = at<u16>(part.scales) + place.group * 8;
        store16(to, pack8(centre));
        store16(to + part.rows, pack8(half_range));
    }
    for (u32 start = 0; start < place.octets; start += place.team) {
        const u32 octet = start + place.octet;
        const Swap swap = swap_of(octet, place.octets, place.live, place.team);
        if (swap.live && place.octets > place.team) load_tile(tile, part, place.group, octet);
        Words words = {};
#pragma unroll
        for (int r = 0; r < 8; r++) add_codes(words, tile.row[r], r, centre[r], half_range[r]);
        store_words(part.codes, static_cast<u64>(place.group) * part.lanes + octet * 8, words, swap);
    }
}
KV_EXPORT(kvtier_kc4vt4_encode);

// Nearest bf16 of each value. Outcome: `damaged` when a header is one that no encoder writes.
extern "C" __global__ void __launch_bounds__(GRID_THREADS) kvtier_kc4vt4_decode(u64 parts, u32 damaged) {
    KV_SHARED(Part, part);
    fetch_record(part, parts);
    const Place place = place_of(part);
    u16 centre[8] = {}, half_range[8] = {};
    if (place.live) {
        const u16* header = at<const u16>(part.scales) + place.group * 8;
        unpack8(load16(header), centre);
        unpack8(load16(header + part.rows), half_range);
    }
    bool sound = true;
#pragma unroll
    for (int r = 0; r < 8; r++) sound = sound && header_is_sound(centre[r], true) && header_is_sound(half_range[r], false);
    if (!sound && place.octet == 0) tell(part.verdict, damaged);
    for (u32 start = 0; start < place.octets; start += place.team) {
        const u32 octet = start + place.octet;
        const Swap swap = swap_of(octet, place.octets, place.live, place.team);
        const Words words = load_words(part.codes, static_cast<u64>(place.group) * part.lanes + octet * 8, swap);
        if (!swap.live) continue;
        u16* to = at<u16>(part.values) + static_cast<u64>(place.group) * 8 * part.lanes + octet * 8;
#pragma unroll
        for (int r = 0; r < 8; r++) {
            float half = f16_to_f32(half_range[r]);
            float low = __fsub_rn(f16_to_f32(centre[r]), half), step = __fdiv_rn(half, 7.5f);
            u16 row[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float code = __int2float_rn(static_cast<i32>(words.word[i] >> (4 * r) & 15u));
                row[i] = bf16_of(__fmaf_rn(code, step, low));
            }
            store16(to + r * part.lanes, pack8(row));
        }
    }
}
KV_EXPORT(kvtier_kc4vt4_decode);
