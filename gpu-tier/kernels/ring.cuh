// A ring of stages in shared memory that a span's rows come through, by asynchronous copies of 16 bytes.
#pragma once

#include "span.cuh"

#define STAGES 4
#define STAGE_BYTES 4096

// Starts the copies of one stage.
__device__ __forceinline__ void start_stage(u8* to, const Rows& rows, u32 stage) {
    const u32 first = stage * rows.stage_rows, count = rows_in(rows, stage), per_row = rows.row_bytes / 16;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < count * per_row; i += THREADS) {
        const u32 row = first + i / per_row, within = i % per_row;
        u64 from;
        if (rows.piece_rows == 0) {
            const u32 per_piece = per_row / 4, piece = within / per_piece;
            if (piece >= rows.pieces) continue;
            from = piece_base(rows, piece) + static_cast<u64>(row) * rows.stride + within % per_piece * 16;
        } else {
            const u32 piece = row / rows.piece_rows;
            from = piece_base(rows, piece) + static_cast<u64>(row % rows.piece_rows) * rows.stride + within * 16;
        }
        copy16_async(to + i * 16, at<const u8>(from));
    }
}

// Starts the copy of some bytes, a multiple of 16.
__device__ __forceinline__ void start_copy(void* to, u64 from, u32 bytes) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < bytes / 16; i += THREADS) copy16_async(static_cast<u8*>(to) + i * 16, at<const u8>(from) + i * 16);
}

// Keys, then values, through the ring.
struct Ring {
    u8 (*stages)[STAGE_BYTES];
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
            rows.piece_rows = key ? keys.piece_rows : values.piece_rows;
            rows.pieces = keys.pieces;
            start_stage(stages[s % STAGES], rows, key ? s : s - key_stages);
        }
        async_commit();
    }

    __device__ __forceinline__ void begin() {
        keys.stage_rows = STAGE_BYTES / keys.row_bytes;
        values.stage_rows = STAGE_BYTES / values.row_bytes;
        key_stages = stages_of(keys);
        all = key_stages + stages_of(values);
#pragma unroll 1
        for (u32 s = 0; s < STAGES - 1; s++) start(s);
    }

    // Waits for stage `s`, starts one further on in the place of the one before, and says where this one is.
    __device__ __forceinline__ const u8* next(u32 s) const {
        async_wait<STAGES - 2>();
        __syncthreads();
        start(s + STAGES - 1);
        return stages[s % STAGES];
    }
};
