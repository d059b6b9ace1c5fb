// Paged attention over mixed forms: (m, l, o) of spans of 64 positions, for the rows of several sequences at one layer.
//
// What is computed, operation by operation, is gpu-tier/src/attention.rs and attention/closed.rs; so the bits are those of the cpu
// device. A thread block of 64 threads takes one KV head and a tile of query vectors (a vector is one query head of one row) and one
// span (partials), or all spans in order (a running state). In scores a thread is a token, in sums it is a channel of each 64; four
// half-warps take the vectors in between. Keys and values come through a ring of 4 KiB stages by asynchronous copies of 16 bytes.
//
// Layout of a section: [kv_heads][ K | V ] as in docs/forms.md. Grid: x = units, see AttendJob; 64 threads.
// kvtier_attend_vV_cC: tiles of V vectors, heads of up to 64 C channels (a multiple of 16).
#include "attention.cuh"

#define THREADS 64
#define STAGES 4
#define STAGE_BYTES 4096

// One span of a job. Sections are of KV head 0; 0 where nobody reads them.
struct SpanPlace {
    u64 exact[4];     // the exact section of the block of each 16 tokens
    u64 header;       // closed sections of the span's block
    u64 scale;
    u64 codes;
    u32 index;
    u32 closed_from;  // first position that reads the closed sections
};

struct AttendJob {
    u64 queries;      // [rows][heads][head_dim]
    u64 targets;      // f32, (m, l, o) each
    u64 spans;        // SpanPlace[span_count], bytes behind the first of the launch
    u64 target_row;   // f32 between rows of targets, heads, spans
    u64 target_head;
    u64 target_span;
    u32 first;        // first unit: thread block of the launch
    u32 rows;
    u32 span_count;
    u32 first_position;
    u32 running;      // one state a vector, spans in increasing order: unit = tile kv_heads + kv_head
    u32 unused[3];    // else: unit = (span tiles + tile) kv_heads + kv_head
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
    u32 unused[3];
};

template <int V, int C>
struct AttendShared {
    u8 ring[STAGES][STAGE_BYTES];
    AttendShape shape;
    AttendJob job;
    SpanPlace place;
    // Queries by channel, scores and probabilities by token, so that a thread reads those of all vectors at once.
    float query[64 * C][V];
    float score[SPAN][V];
    // Queries and probabilities as pairs of 16-bit integers, in the order in which codes are unpacked.
    u32 packed_query[V][32 * C];
    u32 packed_weight[V][SPAN / 2];
    // Closed blocks: [head_dim] centres | [head_dim] half-ranges of keys, scales of the tokens' keys, scales or centres |
    // half-ranges of their values. f16.
    u16 header[2 * 64 * C];
    u16 key_scale[SPAN];
    u16 value_scale[2 * SPAN];
    // Of each vector: its row (none: -1), the tokens that it sees in this pass, the span's m and l, the running ones, and what
    // the old and the new sums are multiplied with.
    i32 row[V];
    i32 seen[V];
    float m[V], l[V], running_m[V], running_l[V], keep[V], take[V];
    // Worth of an integer and the part of the sum that codes do not have, of keys and of values.
    float key_unit[V], key_base[V], value_unit[V], value_base[V];
};

// A span's keys or values as rows in memory, of one KV head.
struct Rows {
    u64 base[4];      // first byte of each piece
    u32 stride;       // bytes between rows
    u32 row_bytes;    // of a row in a stage
    u32 rows;         // in all
    u32 stage_rows;   // in a stage
    u32 piece_rows;   // values: rows of a piece; keys: 0, pieces lie side by side in a row
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

template <int V>
__device__ __forceinline__ void load_vector(float* to, const float* from) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + v);
        to[v] = four.x, to[v + 1] = four.y, to[v + 2] = four.z, to[v + 3] = four.w;
    }
}

template <int V>
__device__ __forceinline__ void store_vector(float* to, const float* from) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
        const float4 four = {from[v], from[v + 1], from[v + 2], from[v + 3]};
        *reinterpret_cast<float4*>(to + v) = four;
    }
}

__device__ __forceinline__ float as_float(u16 x) { return f32_of(static_cast<u32>(x) << 16); }
__device__ __forceinline__ float as_float(float x) { return x; }

// Place of an integer among the 16-bit numbers that its group of codes meets: 8 bits in order; 4 bits even rows, then odd ones.
__device__ __forceinline__ u32 packed_place(u32 index, u32 bits) {
    return bits == 8 ? index : (index & ~7u) + (index & 1) * 4 + (index >> 1 & 3);
}

// What one integer is worth, of the largest magnitude: with 4 bits, the step's 1 / 7.5 is in it.
__device__ __forceinline__ float worth(u32 bits) { return bits == 8 ? 1.0f / 32767.0f : 1.0f / (32767.0f * 7.5f); }

__device__ __forceinline__ float magnitude(float x) { return f32_of(bits_of(x) & 0x7fffffffu); }

// Products of the 16-bit numbers at `weights` with the codes of one word, added to `sum`.
__device__ __forceinline__ i32 dot_word4(const u32* weights, u32 low, u32 high, i32 sum) {
    const uint4 w = *reinterpret_cast<const uint4*>(weights);
    sum = dot2_low(w.x, low, sum);
    sum = dot2_high(w.y, low, sum);
    sum = dot2_low(w.z, high, sum);
    return dot2_high(w.w, high, sum);
}
__device__ __forceinline__ i32 dot_word8(const u32* weights, u32 word, i32 sum) {
    const uint2 w = *reinterpret_cast<const uint2*>(weights);
    return dot2_high(w.y, word, dot2_low(w.x, word, sum));
}

// Adds the products of one word of codes with the weights of all vectors; `weights` are `stride` words apart.
template <int V>
__device__ __forceinline__ void add_word(i32* sums, const u32* weights, u32 stride, u32 word, u32 bits) {
    if (bits == 4) {
        const u32 low = word & 0x0f0f0f0fu, high = word >> 4 & 0x0f0f0f0fu;
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] = dot_word4(weights + v * stride, low, high, sums[v]);
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] = dot_word8(weights + v * stride, word, sums[v]);
    }
}

// One thread block's work.
template <int V, int C>
struct Attend {
    AttendShared<V, C>& shared;
    const AttendShape& shape;
    const AttendJob& job;
    u64 spans;
    u32 kv_head;
    u32 first_vector;
    u32 group;
    float sums[C][V];   // of this span
    float state[C][V];  // running

    __device__ __forceinline__ u32 channel(int c) const { return threadIdx.x + 64 * c; }

    __device__ __forceinline__ float* target(int v, u32 span) const {
        const u32 head = kv_head * group + (first_vector + v) % group;
        return at<float>(job.targets) + static_cast<u64>(shared.row[v]) * job.target_row + head * job.target_head + span * job.target_span;
    }

    // Rows of the tile, and their queries by channel. Ends with a barrier.
    __device__ __forceinline__ void load_queries() {
        const u32 dim = shape.head_dim, vectors = job.rows * group;
        if (threadIdx.x < V) {
            const u32 vector = first_vector + threadIdx.x;
            shared.row[threadIdx.x] = vector < vectors ? static_cast<i32>(vector / group) : -1;
        }
        const u32 per_load = shape.query == 0 ? 4 : 8, loads = dim / per_load;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < V * loads; i += THREADS) {
            const u32 v = i / loads, d = i % loads * per_load, vector = first_vector + v;
            uint4 x = make16(0, 0, 0, 0);
            if (vector < vectors) {
                const u32 head = kv_head * group + vector % group;
                const u64 element = (static_cast<u64>(vector / group) * shape.heads + head) * dim + d;
                x = load16(at<const u8>(job.queries + element * (16 / per_load)));
            }
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const u32 word = w == 0 ? x.x : (w == 1 ? x.y : (w == 2 ? x.z : x.w));
                if (shape.query == 0) {
                    shared.query[d + w][v] = f32_of(word);
                } else {
                    const bool bf16 = shape.query == 1;
                    shared.query[d + 2 * w][v] = bf16 ? bf16_low(word) : f16_to_f32(static_cast<u16>(word));
                    shared.query[d + 2 * w + 1][v] = bf16 ? bf16_high(word) : f16_to_f32(static_cast<u16>(word >> 16));
                }
            }
        }
        __syncthreads();
    }

    // Tokens of the span that row `row` sees, not more than 64; not positive when it sees none.
    __device__ __forceinline__ i64 visible(i64 row, const SpanPlace& span) const {
        const i64 tokens = static_cast<i64>(job.first_position) + 1 - static_cast<i64>(span.index) * SPAN + row;
        return tokens < SPAN ? tokens : SPAN;
    }

    // Says which vectors take part in a pass and what they see. Returns the most tokens that one sees, 0 for none; `same` when
    // all that take part see as many. Has a barrier.
    __device__ __forceinline__ u32 choose(const SpanPlace& span, bool closed, bool& same) {
        __syncthreads();
        if (threadIdx.x < V) {
            const i32 row = shared.row[threadIdx.x];
            const bool reads_closed = row >= 0 && static_cast<u64>(job.first_position) + row >= span.closed_from;
            const i64 seen = row >= 0 && reads_closed == closed ? visible(row, span) : 0;
            shared.seen[threadIdx.x] = seen > 0 ? static_cast<i32>(seen) : 0;
        }
        __syncthreads();
        i32 most = 0;
#pragma unroll
        for (int v = 0; v < V; v++) most = shared.seen[v] > most ? shared.seen[v] : most;
        same = true;
#pragma unroll
        for (int v = 0; v < V; v++) same = same && (shared.seen[v] == most || shared.seen[v] == 0);
        return most;
    }

    // Scores of vector v to probabilities, m and l; this half-warp's lane holds tokens j, j + 16, j + 32, j + 48. The
    // probabilities of its tokens go to `p`.
    __device__ __forceinline__ void soften(int v, const SpanPlace& span, float* p) {
        const u32 j = threadIdx.x % 16;
        const i32 seen = shared.seen[v];
        float m = f32_of(0xff800000u);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            p[k] = static_cast<i32>(j + 16 * k) < seen ? shared.score[j + 16 * k][v] : f32_of(0xff800000u);
            m = larger(m, p[k]);
        }
        // Of two zeros either may have won; the sum makes both the positive one.
        m = __fadd_rn(max16(m), 0.0f);
        float l = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            p[k] = static_cast<i32>(j + 16 * k) < seen ? exp_exact(__fsub_rn(p[k], m)) : 0.0f;
            l = __fadd_rn(l, p[k]);
            shared.score[j + 16 * k][v] = p[k];
        }
        l = sum16(l);
        if (j == 0 && seen > 0) {
            shared.m[v] = m;
            shared.l[v] = l;
            if (job.running) merge_scalars(v, m, l, span.index > 0);
        }
    }

    __device__ __forceinline__ void merge_scalars(int v, float m, float l, bool fold) {
        const float old_m = fold ? shared.running_m[v] : m, old_l = fold ? shared.running_l[v] : l;
        const float new_m = m > old_m ? m : old_m;
        const float keep = exp_exact(__fsub_rn(old_m, new_m)), take = exp_exact(__fsub_rn(m, new_m));
        shared.keep[v] = keep;
        shared.take[v] = take;
        shared.running_m[v] = new_m;
        shared.running_l[v] = fold ? __fmaf_rn(old_l, keep, __fmul_rn(l, take)) : l;
    }

    // Writes the span's partials, or takes them into the running state.
    __device__ __forceinline__ void deliver(const SpanPlace& span) {
        if (!job.running) {
            write(span.index, shared.m, shared.l, sums, true);
            return;
        }
        const bool fold = span.index > 0;
#pragma unroll
        for (int v = 0; v < V; v++) {
            if (shared.seen[v] == 0) continue;
            const float keep = shared.keep[v], take = shared.take[v];
#pragma unroll
            for (int c = 0; c < C; c++) state[c][v] = fold ? __fmaf_rn(state[c][v], keep, __fmul_rn(sums[c][v], take)) : sums[c][v];
        }
    }

    // (m, l, o) of each vector as they lie in targets, in the ring's place: no stage is in use between spans.
    __device__ __forceinline__ float* image(int v) { return reinterpret_cast<float*>(shared.ring) + v * (shape.head_dim + 2); }

    __device__ __forceinline__ bool is_written(int v, bool served) const {
        return served ? shared.seen[v] > 0 : shared.row[v] >= 0;
    }

    // Writes (m, l, o) of the tile's vectors, of those that this pass has served or of all.
    __device__ __forceinline__ void write(u32 span, const float* m, const float* l, const float (*o)[V], bool served) {
        __syncthreads();
        if (threadIdx.x < V && is_written(threadIdx.x, served)) {
            image(threadIdx.x)[0] = m[threadIdx.x];
            image(threadIdx.x)[1] = l[threadIdx.x];
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int c = 0; c < C; c++)
                if (channel(c) < shape.head_dim) image(v)[2 + channel(c)] = o[c][v];
        }
        __syncthreads();
#pragma unroll 1
        for (int v = 0; v < V; v++)
            if (is_written(v, served)) store_floats(target(v, span), image(v), shape.head_dim + 2);
    }

    // Floats to any multiple of 4 bytes, 16 bytes at a time in between.
    __device__ __forceinline__ void store_floats(float* to, const float* from, u32 count) const {
        const u32 lead = static_cast<u32>((16 - (reinterpret_cast<u64>(to) & 15)) & 15) / 4, vectors = (count - lead) / 4;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < vectors; i += THREADS) {
            const float* x = from + lead + 4 * i;
            store16(to + lead + 4 * i, make16(bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])));
        }
        const u32 rest = count - 4 * vectors;
        if (threadIdx.x < rest) {
            const u32 i = threadIdx.x < lead ? threadIdx.x : threadIdx.x + 4 * vectors;
            to[i] = from[i];
        }
    }

    // --- exact blocks --------------------------------------------------------------------------------------------------

    __device__ __forceinline__ void exact_rows(const SpanPlace& span, u32 tokens, Rows& keys, Rows& values) const {
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
        keys.stage_rows = STAGE_BYTES / keys.row_bytes;
        keys.piece_rows = 0;
        values.stride = values.row_bytes = dim * size;
        values.rows = tokens;
        values.stage_rows = STAGE_BYTES / values.row_bytes;
        values.piece_rows = PIECE;
    }

    __device__ __forceinline__ void exact(const SpanPlace& span) {
        bool same;
        const u32 tokens = choose(span, false, same);
        if (tokens == 0) return;
        Ring ring;
        ring.stages = shared.ring;
        exact_rows(span, tokens, ring.keys, ring.values);
        ring.begin();
        float dots[V];
#pragma unroll
        for (int v = 0; v < V; v++) dots[v] = 0.0f;
        const bool sees = threadIdx.x < ring.keys.pieces * PIECE;
#pragma unroll 1
        for (u32 s = 0; s < ring.key_stages; s++) {
            const u8* stage = ring.next(s);
            if (!sees) continue;
            const u32 first = s * ring.keys.stage_rows, count = rows_in(ring.keys, s);
            if (shape.element_bytes == 2) {
                add_keys<u16>(dots, stage, first, count);
            } else {
                add_keys<float>(dots, stage, first, count);
            }
        }
#pragma unroll
        for (int v = 0; v < V; v++) dots[v] = __fmul_rn(shape.scale, dots[v]);
        if (sees) store_vector<V>(shared.score[threadIdx.x], dots);
        __syncthreads();
#pragma unroll 1
        for (int v = threadIdx.x / 16; v < V; v += 4) {
            float p[4];
            soften(v, span, p);
        }
#pragma unroll
        for (int c = 0; c < C; c++) {
#pragma unroll
            for (int v = 0; v < V; v++) sums[c][v] = 0.0f;
        }
#pragma unroll 1
        for (u32 s = ring.key_stages; s < ring.all; s++) {
            const u8* stage = ring.next(s);
            const u32 first = (s - ring.key_stages) * ring.values.stage_rows, count = rows_in(ring.values, s - ring.key_stages);
            if (shape.element_bytes == 2 && same) {
                add_values<u16, true>(stage, first, count);
            } else if (shape.element_bytes == 2) {
                add_values<u16, false>(stage, first, count);
            } else {
                add_values<float, false>(stage, first, count);
            }
        }
        deliver(span);
    }

    // Adds `count` channels of a stage to the products of this thread's token.
    template <class Element>
    __device__ __forceinline__ void add_keys(float* dots, const u8* stage, u32 first, u32 count) const {
        const Element* keys = reinterpret_cast<const Element*>(stage) + threadIdx.x;
#pragma unroll 4
        for (u32 r = 0; r < count; r++) {
            const float k = as_float(keys[r * SPAN]);
            float q[V];
            load_vector<V>(q, shared.query[first + r]);
#pragma unroll
            for (int v = 0; v < V; v++) dots[v] = __fmaf_rn(q[v], k, dots[v]);
        }
    }

    // Adds `count` tokens of a stage to the sums; unless all vectors see them, each as far as it sees.
    template <class Element, bool All>
    __device__ __forceinline__ void add_values(const u8* stage, u32 first, u32 count) {
        const u32 dim = shape.head_dim;
        i32 seen[V];
#pragma unroll
        for (int v = 0; v < V; v++) seen[v] = All ? 0 : shared.seen[v];
#pragma unroll 2
        for (u32 r = 0; r < count; r++) {
            float p[V];
            load_vector<V>(p, shared.score[first + r]);
#pragma unroll
            for (int c = 0; c < C; c++) {
                if (channel(c) >= dim) continue;
                const float x = as_float(reinterpret_cast<const Element*>(stage)[r * dim + channel(c)]);
#pragma unroll
                for (int v = 0; v < V; v++)
                    if (All || static_cast<i32>(first + r) < seen[v]) sums[c][v] = __fmaf_rn(p[v], x, sums[c][v]);
            }
        }
    }

    // --- closed blocks -------------------------------------------------------------------------------------------------

    // Rows of words of codes, and the copies of headers and scales.
    __device__ __forceinline__ void closed_rows(const SpanPlace& span, Rows& keys, Rows& values) {
        const u32 dim = shape.head_dim, tokens = shape.block_tokens, token = span.index * SPAN & (tokens - 1);
        const u32 key_bits = shape.key_bits, value_bits = shape.value_bits;
        const u64 key_code_bytes = static_cast<u64>(dim) * tokens * key_bits / 8;
        const u64 value_code_bytes = static_cast<u64>(dim) * tokens * value_bits / 8;
        const u64 key_scale_bytes = key_bits == 8 ? 2 * tokens : 0;
        const u64 value_scale_bytes = (value_bits == 8 ? 2u : 4u) * tokens;
        const u64 codes = span.codes + kv_head * (key_code_bytes + value_code_bytes);
        const u64 scale = span.scale + kv_head * (key_scale_bytes + value_scale_bytes);
        const u32 key_word = 32 / key_bits, value_word = 32 / value_bits;
        keys.pieces = values.pieces = 4;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            keys.base[i] = codes + 4 * (token + i * PIECE);
            values.base[i] = codes + key_code_bytes + static_cast<u64>((token + i * PIECE) / value_word) * dim * 4;
        }
        keys.stride = tokens * 4;
        keys.row_bytes = SPAN * 4;
        keys.rows = dim / key_word;
        keys.stage_rows = STAGE_BYTES / keys.row_bytes;
        keys.piece_rows = 0;
        values.stride = values.row_bytes = dim * 4;
        values.rows = SPAN / value_word;
        values.stage_rows = STAGE_BYTES / values.row_bytes;
        values.piece_rows = PIECE / value_word;
        if (key_bits == 4) {
            start_copy(shared.header, span.header + static_cast<u64>(kv_head) * 4 * dim, 4 * dim);
        } else {
            start_copy(shared.key_scale, scale + 2 * token, 2 * SPAN);
        }
        start_copy(shared.value_scale, scale + key_scale_bytes + 2 * token, 2 * SPAN);
        if (value_bits == 4) start_copy(shared.value_scale + SPAN, scale + key_scale_bytes + 2 * token + 2 * tokens, 2 * SPAN);
    }

    // Queries of vector v to integers, by this half-warp.
    __device__ __forceinline__ void quantise_query(int v) {
        const u32 dim = shape.head_dim, bits = shape.key_bits;
        float most = 0.0f, base = 0.0f;
#pragma unroll 1
        for (u32 d = threadIdx.x % 16; d < dim; d += 16) {
            const float q = shared.query[d][v];
            float weight = q;
            if (bits == 4) {
                const float half = f16_to_f32(shared.header[dim + d]);
                weight = __fmul_rn(q, half);
                base = __fmaf_rn(q, __fsub_rn(f16_to_f32(shared.header[d]), half), base);
            }
            most = larger(most, magnitude(weight));
        }
        most = max16(most);
        base = sum16(base);
        const bool none = most < 1e-30f;
        const float inverse = none ? 0.0f : __fdiv_rn(32767.0f, most);
        i8* place = reinterpret_cast<i8*>(shared.packed_query[v]);
#pragma unroll 1
        for (u32 d = threadIdx.x % 16; d < dim; d += 16) {
            float weight = shared.query[d][v];
            if (bits == 4) weight = __fmul_rn(weight, f16_to_f32(shared.header[dim + d]));
            const i32 integer = none ? 0 : __float2int_rn(__fmul_rn(weight, inverse));
            reinterpret_cast<u16*>(place)[packed_place(d, bits)] = static_cast<u16>(integer);
        }
        if (threadIdx.x % 16 == 0) {
            shared.key_unit[v] = none ? 0.0f : __fmul_rn(most, worth(bits));
            shared.key_base[v] = base;
        }
    }

    // Probabilities of vector v, times the tokens' scales, to integers, by this half-warp.
    __device__ __forceinline__ void quantise_weights(int v, const float* p) {
        const u32 j = threadIdx.x % 16, bits = shape.value_bits;
        float weight[4], most = 0.0f, base = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const u32 t = j + 16 * k;
            const float first = f16_to_f32(shared.value_scale[t]);
            if (bits == 4) {
                const float half = f16_to_f32(shared.value_scale[SPAN + t]);
                weight[k] = __fmul_rn(p[k], half);
                base = __fmaf_rn(p[k], __fsub_rn(first, half), base);
            } else {
                weight[k] = __fmul_rn(p[k], first);
            }
            most = larger(most, magnitude(weight[k]));
        }
        most = max16(most);
        base = sum16(base);
        const bool none = most < 1e-30f;
        const float inverse = none ? 0.0f : __fdiv_rn(32767.0f, most);
        u16* place = reinterpret_cast<u16*>(shared.packed_weight[v]);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const i32 integer = none ? 0 : __float2int_rn(__fmul_rn(weight[k], inverse));
            place[packed_place(j + 16 * k, bits)] = static_cast<u16>(integer);
        }
        if (j == 0) {
            shared.value_unit[v] = none ? 0.0f : __fmul_rn(most, worth(bits));
            shared.value_base[v] = base;
        }
    }

    __device__ __forceinline__ void closed(const SpanPlace& span) {
        bool same;
        if (choose(span, true, same) == 0) return;
        Ring ring;
        ring.stages = shared.ring;
        closed_rows(span, ring.keys, ring.values);
        ring.begin();
        const u32 key_bits = shape.key_bits, value_bits = shape.value_bits, dim = shape.head_dim;
        i32 dots[V];
#pragma unroll
        for (int v = 0; v < V; v++) dots[v] = 0;
#pragma unroll 1
        for (u32 s = 0; s < ring.key_stages; s++) {
            const u32* stage = reinterpret_cast<const u32*>(ring.next(s)) + threadIdx.x;
            if (s == 0) {
#pragma unroll 1
                for (int v = threadIdx.x / 16; v < V; v += 4) quantise_query(v);
                __syncthreads();
            }
            const u32 first = s * ring.keys.stage_rows, count = rows_in(ring.keys, s);
            const u32* weights = shared.packed_query[0] + first * (key_bits == 4 ? 4 : 2);
#pragma unroll 1
            for (u32 r = 0; r < count; r++) {
                add_word<V>(dots, weights, 32 * C, stage[r * SPAN], key_bits);
                weights += key_bits == 4 ? 4 : 2;
            }
        }
        float scores[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float dot = __int2float_rn(dots[v]), unit = shared.key_unit[v];
            const float sum = key_bits == 4 ? __fmaf_rn(dot, unit, shared.key_base[v])
                                            : __fmul_rn(__fmul_rn(dot, unit), f16_to_f32(shared.key_scale[threadIdx.x]));
            scores[v] = __fmul_rn(shape.scale, sum);
        }
        store_vector<V>(shared.score[threadIdx.x], scores);
        __syncthreads();
#pragma unroll 1
        for (int v = threadIdx.x / 16; v < V; v += 4) {
            float p[4];
            soften(v, span, p);
            quantise_weights(v, p);
        }
        i32 totals[C][V];
#pragma unroll
        for (int c = 0; c < C; c++) {
#pragma unroll
            for (int v = 0; v < V; v++) totals[c][v] = 0;
        }
#pragma unroll 1
        for (u32 s = ring.key_stages; s < ring.all; s++) {
            const u32* stage = reinterpret_cast<const u32*>(ring.next(s));
            const u32 first = (s - ring.key_stages) * ring.values.stage_rows, count = rows_in(ring.values, s - ring.key_stages);
            const u32* weights = shared.packed_weight[0] + first * (value_bits == 4 ? 4 : 2);
#pragma unroll 1
            for (u32 r = 0; r < count; r++) {
#pragma unroll
                for (int c = 0; c < C; c++)
                    if (channel(c) < dim) add_word<V>(totals[c], weights, SPAN / 2, stage[r * dim + channel(c)], value_bits);
                weights += value_bits == 4 ? 4 : 2;
            }
        }
#pragma unroll
        for (int c = 0; c < C; c++) {
#pragma unroll
            for (int v = 0; v < V; v++)
                sums[c][v] = __fmaf_rn(__int2float_rn(totals[c][v]), shared.value_unit[v], value_bits == 4 ? shared.value_base[v] : 0.0f);
        }
        deliver(span);
    }

    // --- spans ---------------------------------------------------------------------------------------------------------

    __device__ __forceinline__ void span(const SpanPlace& span) {
        const u32 last = job.rows * group - 1 < first_vector + V - 1 ? job.rows * group - 1 : first_vector + V - 1;
        const u64 first_position = static_cast<u64>(job.first_position) + first_vector / group;
        const u64 last_position = static_cast<u64>(job.first_position) + last / group;
        if (last_position < static_cast<u64>(span.index) * SPAN) return;
        if (first_position < span.closed_from) exact(span);
        if (last_position >= span.closed_from) closed(span);
    }

    __device__ __forceinline__ void run(u32 span_at) {
        load_queries();
        const u64 places = spans + job.spans;
        const u32 begin = job.running ? 0 : span_at, end = job.running ? job.span_count : span_at + 1;
#pragma unroll 1
        for (u32 i = begin; i < end; i++) {
            __syncthreads();
            fetch(shared.place, places + static_cast<u64>(i) * sizeof(SpanPlace));
            __syncthreads();
            if (job.running && i == 0) load_state(shared.place.index > 0);
            span(shared.place);
        }
        if (job.running) write(0, shared.running_m, shared.running_l, state, false);
    }

    // The running state; zeros when it starts here.
    __device__ __forceinline__ void load_state(bool started) {
#pragma unroll 1
        for (int v = 0; v < V; v++) {
            const bool there = started && shared.row[v] >= 0;
            const float* from = there ? target(v, 0) : nullptr;
#pragma unroll 1
            for (u32 i = threadIdx.x; i < shape.head_dim + 2; i += THREADS) image(v)[i] = there ? from[i] : 0.0f;
        }
        __syncthreads();
        if (threadIdx.x < V) {
            shared.running_m[threadIdx.x] = image(threadIdx.x)[0];
            shared.running_l[threadIdx.x] = image(threadIdx.x)[1];
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int c = 0; c < C; c++) state[c][v] = channel(c) < shape.head_dim ? image(v)[2 + channel(c)] : 0.0f;
        }
    }
};

template <int V, int C>
__device__ __forceinline__ void attend(AttendShared<V, C>& shared, u64 shapes, u64 jobs, u64 spans, u32 count) {
    const u32 number = job_number<AttendJob>(jobs, count, blockIdx.x);
    fetch(shared.shape, shapes);
    fetch(shared.job, jobs + static_cast<u64>(number) * sizeof(AttendJob));
    __syncthreads();
    const AttendShape shape = shared.shape;
    const AttendJob job = shared.job;
    const u32 unit = blockIdx.x - job.first, group = shape.heads / shape.kv_heads;
    const u32 tiles = (job.rows * group + V - 1) / V, tile_at = unit / shape.kv_heads;
    Attend<V, C> work = {shared, shape, job, spans, unit % shape.kv_heads, tile_at % tiles * V, group, {}, {}};
    work.run(tile_at / tiles);
}

#define KV_ATTEND(v, c)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                              \
        kvtier_attend_v##v##_c##c(u64 shape, u64 jobs, u64 spans, u32 count) {                            \
        typedef AttendShared<v, c> Shared;                                                                \
        KV_SHARED(Shared, shared);                                                                        \
        attend<v, c>(shared, shape, jobs, spans, count);                                                  \
    }                                                                                                     \
    KV_EXPORT(kvtier_attend_v##v##_c##c)

KV_ATTEND(4, 1);
KV_ATTEND(4, 2);
KV_ATTEND(4, 4);
KV_ATTEND(8, 1);
KV_ATTEND(8, 2);
KV_ATTEND(8, 4);
