// Where the keys and the values of one span of 64 positions lie: rows in memory, of one KV head. Shared by the kernels that attend.
//
// Layout of a section: [kv_heads][ K | V ] as in docs/forms.md.
#pragma once

#include "attention.cuh"

// Threads of a block of every kernel that attends.
#define THREADS 64

// One span of a job. Sections are of KV head 0; 0 where nobody reads them.
struct SpanPlace {
    u64 exact[4];     // the exact section of the block of each 16 tokens
    u64 header;       // closed sections of the span's block
    u64 scale;
    u64 codes;
    u32 index;
    u32 closed_from;  // first position that reads the closed sections
};

// Shapes of a launch.
struct AttendShape {
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 block_tokens;
    u32 element_bytes;  // of exact sections: 2 bf16, 4 f32
    u32 key_bits;       // of closed sections: 4, 8; 0 when no job has one
    u32 value_bits;
    u32 query;          // 0 f32, 1 bf16, 2 f16
    float scale;
};

// A span's keys or values as rows in memory, of one KV head.
struct Rows {
    u64 base[4];      // first byte of each piece
    u32 stride;       // bytes between rows
    u32 row_bytes;    // of a row in a stage
    u32 rows;         // in all
    u32 stage_rows;   // in a stage
    u32 by_rows;      // whether pieces are runs of rows (values); else they lie side by side in a row (keys)
    u32 piece_shift;  // log2 of a piece's rows, or of its 16 bytes in a row
    u32 pieces;       // that somebody sees
};

__device__ __forceinline__ u32 stages_of(const Rows& rows) { return (rows.rows + rows.stage_rows - 1) / rows.stage_rows; }

// Rows of a stage.
__device__ __forceinline__ u32 rows_in(const Rows& rows, u32 stage) {
    const u32 first = stage * rows.stage_rows;
    return rows.rows - first < rows.stage_rows ? rows.rows - first : rows.stage_rows;
}

__device__ __forceinline__ u64 piece_base(const Rows& rows, u32 piece) {
    return piece < 2 ? (piece == 0 ? rows.base[0] : rows.base[1]) : (piece == 2 ? rows.base[2] : rows.base[3]);
}

// Keys and values of an exact span, as far as somebody sees `tokens` of it.
__device__ __forceinline__ void exact_rows(const AttendShape& shape, u32 kv_head, const SpanPlace& span, u32 tokens, Rows& keys, Rows& values) {
    const u32 size = shape.element_bytes, dim = shape.head_dim;
    const u64 key_bytes = static_cast<u64>(dim) * shape.block_tokens * size;
    keys.pieces = values.pieces = (tokens + PIECE - 1) / PIECE;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u64 token = (span.index * SPAN + i * PIECE) & (shape.block_tokens - 1);
        const u64 head = span.exact[i] + kv_head * 2 * key_bytes;
        keys.base[i] = head + token * size;
        values.base[i] = head + key_bytes + token * dim * size;
    }
    keys.stride = shape.block_tokens * size;
    keys.row_bytes = SPAN * size;
    keys.rows = dim;
    keys.by_rows = 0;
    keys.piece_shift = size == 2 ? 1 : 2;
    values.stride = values.row_bytes = dim * size;
    values.rows = tokens;
    values.by_rows = 1;
    values.piece_shift = 4;
}

// Words of codes of a closed span, and where the numbers that belong to them lie.
struct ClosedPlace {
    Rows keys, values;
    u64 header;      // f16 [head_dim] centres | [head_dim] half-ranges of keys of 4 bits
    u64 key_scale;   // f16, of the span's tokens' keys of 8 bits
    u64 value_scale; // f16, of the tokens' values: scales, or centres
    u64 value_half;  // f16, half-ranges of values of 4 bits
};

__device__ __forceinline__ void closed_place(const AttendShape& shape, u32 kv_head, const SpanPlace& span, ClosedPlace& out) {
    const u32 dim = shape.head_dim, tokens = shape.block_tokens, token = span.index * SPAN & (tokens - 1);
    const u32 key_bits = shape.key_bits, value_bits = shape.value_bits;
    const u64 key_code_bytes = static_cast<u64>(dim) * tokens * key_bits / 8;
    const u64 value_code_bytes = static_cast<u64>(dim) * tokens * value_bits / 8;
    const u64 key_scale_bytes = key_bits == 8 ? 2 * tokens : 0;
    const u64 value_scale_bytes = (value_bits == 8 ? 2u : 4u) * tokens;
    const u64 codes = span.codes + kv_head * (key_code_bytes + value_code_bytes);
    const u64 scale = span.scale + kv_head * (key_scale_bytes + value_scale_bytes);
    const u32 key_word = 32 / key_bits, value_word = 32 / value_bits;
    out.keys.pieces = out.values.pieces = 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        out.keys.base[i] = codes + 4 * (token + i * PIECE);
        out.values.base[i] = codes + key_code_bytes + static_cast<u64>((token + i * PIECE) / value_word) * dim * 4;
    }
    out.keys.stride = tokens * 4;
    out.keys.row_bytes = SPAN * 4;
    out.keys.rows = dim / key_word;
    out.keys.by_rows = 0;
    out.keys.piece_shift = 2;
    out.values.stride = out.values.row_bytes = dim * 4;
    out.values.rows = SPAN / value_word;
    out.values.by_rows = 1;
    out.values.piece_shift = value_bits == 8 ? 2 : 1;
    out.header = span.header + static_cast<u64>(kv_head) * 4 * dim;
    out.key_scale = scale + 2 * token;
    out.value_scale = scale + key_scale_bytes + 2 * token;
    out.value_half = out.value_scale + 2 * tokens;
}
