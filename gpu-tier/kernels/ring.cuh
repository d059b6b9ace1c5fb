// A ring of stages in shared memory that a span's rows come through, by asynchronous copies of 16 bytes.
#pragma once

#include "span.cuh"

// Starts the copies of one stage: rows `Pad` bytes apart, so that who reads columns meets other banks; rows that are missing in the
// last `Unit` of them are zeros.
template <int Pad, int Unit>
__device__ __forceinline__ void start_stage(u8* to, const Rows& rows, u32 stage) {
    const u32 first = stage * rows.stage_rows, count = rows_in(rows, stage), filled = (count + Unit - 1) / Unit * Unit;
    const u32 per_row = rows.row_bytes / 16, mask = (1u << rows.piece_shift) - 1;
    const u32 rows_on = THREADS / per_row, within_on = THREADS % per_row;
    u32 row = threadIdx.x / per_row, within = threadIdx.x % per_row;
#pragma unroll 1
    while (row < filled) {
        u8* place = to + row * (rows.row_bytes + Pad) + within * 16;
        const u32 piece = (rows.by_rows ? first + row : within) >> rows.piece_shift;
        if (Unit > 1 && row >= count) {
            *reinterpret_cast<uint4*>(place) = make16(0, 0, 0, 0);
        } else if (piece < rows.pieces) {
            const u32 in_piece = rows.by_rows ? (first + row) & mask : first + row, column = rows.by_rows ? within : within & mask;
            copy16_async(place, at<const u8>(piece_base(rows, piece) + static_cast<u64>(in_piece) * rows.stride + column * 16));
        }
        row += rows_on;
        within += within_on;
        if (within >= per_row) {
            within -= per_row;
            row++;
        }
    }
}

// Starts the copy of some bytes, a multiple of 16.
__device__ __forceinline__ void start_copy(void* to, u64 from, u32 bytes) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < bytes / 16; i += THREADS) copy16_async(static_cast<u8*>(to) + i * 16, at<const u8>(from) + i * 16);
}

// Starts the copies of the headers and scales of a closed span.
template <class Shared>
__device__ __forceinline__ void start_numbers(Shared& shared, const AttendShape& shape, const ClosedPlace& place) {
    if (shape.key_bits == 4) {
        start_copy(shared.header, place.header, 4 * shape.head_dim);
    } else {
        start_copy(shared.key_scale, place.key_scale, 2 * SPAN);
    }
    start_copy(shared.value_scale, place.value_scale, 2 * SPAN);
    if (shape.value_bits == 4) start_copy(shared.value_scale + SPAN, place.value_half, 2 * SPAN);
}

// Keys, then values, through a ring of stages, each of whole units of rows.
template <int Stages, int StageBytes, int Pad, int Unit>
struct Ring {
    u8 (*stages)[StageBytes];
    Rows keys, values;
    u32 key_stages, all;

    // Starts stage `s`, if there is one, as a group of its own. What was started before belongs to the first group.
    __device__ __forceinline__ void start(u32 s) const {
        if (s < all) {
            const bool key = s < key_stages;
            Rows rows;
#pragma unroll
            for (int i = 0; i < 4; i++) rows.base[i] = key ? keys.base[i] : values.base[i];
            rows.stride = key ? keys.stride : values.stride;
            rows.row_bytes = key ? keys.row_bytes : values.row_bytes;
            rows.rows = key ? keys.rows : values.rows;
            rows.stage_rows = key ? keys.stage_rows : values.stage_rows;
            rows.by_rows = key ? keys.by_rows : values.by_rows;
            rows.piece_shift = key ? keys.piece_shift : values.piece_shift;
            rows.pieces = keys.pieces;
            start_stage<Pad, Unit>(stages[s % Stages], rows, key ? s : s - key_stages);
        }
        async_commit();
    }

    __device__ __forceinline__ void begin() {
        keys.stage_rows = StageBytes / (keys.row_bytes + Pad) / Unit * Unit;
        values.stage_rows = StageBytes / (values.row_bytes + Pad) / Unit * Unit;
        key_stages = stages_of(keys);
        all = key_stages + stages_of(values);
#pragma unroll 1
        for (u32 s = 0; s < Stages - 1; s++) start(s);
    }

    // Waits for stage `s`, starts one further on in the place of the one before, and says where this one is.
    __device__ __forceinline__ const u8* next(u32 s) const {
        async_wait<Stages - 2>();
        __syncthreads();
        start(s + Stages - 1);
        return stages[s % Stages];
    }
};
