// One thread block's part of attention, whatever its products are: a tile of query vectors, what each sees of a span, its softmax,
// and (m, l, o) as a partial of that span or in a running state. Shared by the kernels that attend.
//
// Grid: x = units, see AttendJob; 64 threads.
#pragma once

#include "span.cuh"

struct AttendJob {
    u64 queries;      // [rows][heads][head_dim]
    u64 store;        // a Store
    u64 spans;        // SpanPlace[span_count], bytes behind the first of the launch
    u32 store_spans;
    u32 first;        // first unit: thread block of the launch
    u32 rows;
    u32 span_count;
    u32 first_position;
    u32 running;      // one state a vector, spans in increasing order: unit = tile kv_heads + kv_head
    u32 unused[4];    // else: unit = (span tiles + tile) kv_heads + kv_head
};

template <int V, int C>
struct TileShared {
    alignas(16) AttendJob job;
    SpanPlace place;
    // Scores and probabilities by token, so that a thread reads those of all vectors at once.
    alignas(16) float score[SPAN][V];
    // Of each vector: its row (none: -1), the tokens that it sees in this pass, the span's m and l, the running ones, and what
    // the old and the new sums are multiplied with.
    i32 row[V];
    i32 seen[V];
    float m[V], l[V], running_m[V], running_l[V], keep[V], take[V];
};

// `Shared` is a TileShared with what the products need besides: a ring of stages, and queries behind `query_at(channel, vector)`.
template <int V, int C, class Shared>
struct Tile {
    Shared& shared;
    const AttendShape& shape;
    const AttendJob& job;
    u64 spans;
    u32 kv_head;
    u32 first_vector;
    u32 group;
    float sums[C][V];   // of this span
    float state[C][V];  // running

    __device__ __forceinline__ u32 channel(int c) const { return threadIdx.x + 64 * c; }

    __device__ __forceinline__ Store store() const {
        return {job.store, shape.kv_heads, job.rows * group, job.store_spans, shape.head_dim};
    }

    // Rows of the tile, and their queries by channel. Ends with a barrier.
    __device__ __forceinline__ void load_queries() {
        const u32 dim = shape.head_dim, vectors = job.rows * group;
        if (threadIdx.x < V) {
            const u32 vector = first_vector + threadIdx.x;
            shared.row[threadIdx.x] = vector < vectors ? static_cast<i32>(vector / group) : -1;
            shared.m[threadIdx.x] = shared.l[threadIdx.x] = 0.0f;
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
                    shared.query_at(d + w, v) = f32_of(word);
                } else {
                    const bool bf16 = shape.query == 1;
                    shared.query_at(d + 2 * w, v) = bf16 ? bf16_low(word) : f16_to_f32(static_cast<u16>(word));
                    shared.query_at(d + 2 * w + 1, v) = bf16 ? bf16_high(word) : f16_to_f32(static_cast<u16>(word >> 16));
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

    // Writes the span's sums, or takes them into the running state.
    __device__ __forceinline__ void deliver(const SpanPlace& span) {
        if (job.running) {
            merge(span);
        } else {
            put(sums);
            write(span.index, true);
        }
    }

    // The same, of sums that lie in the image.
    __device__ __forceinline__ void deliver_image(const SpanPlace& span) {
        if (!job.running) {
            write(span.index, true);
            return;
        }
        __syncthreads();
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int c = 0; c < C; c++) sums[c][v] = channel(c) < shape.head_dim ? image(v)[channel(c)] : 0.0f;
        }
        merge(span);
    }

    __device__ __forceinline__ void merge(const SpanPlace& span) {
        const bool fold = span.index > 0;
#pragma unroll
        for (int v = 0; v < V; v++) {
            if (shared.seen[v] == 0) continue;
            const float keep = shared.keep[v], take = shared.take[v];
#pragma unroll
            for (int c = 0; c < C; c++) state[c][v] = fold ? __fmaf_rn(state[c][v], keep, __fmul_rn(sums[c][v], take)) : sums[c][v];
        }
    }

    // o of each vector, in the ring's place: no stage is in use between spans. 16 bytes between them, for the banks.
    __device__ __forceinline__ float* image(int v) const { return reinterpret_cast<float*>(shared.ring) + v * (shape.head_dim + 4); }

    __device__ __forceinline__ void put(const float (*o)[V]) {
        __syncthreads();
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int c = 0; c < C; c++)
                if (channel(c) < shape.head_dim) image(v)[channel(c)] = o[c][v];
        }
    }

    // Writes the image's vectors, of those that this pass has served or of all.
    __device__ __forceinline__ void write(u32 span, bool served) {
        __syncthreads();
        const Store to = store();
        const u32 quads = shape.head_dim / 4;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < V * quads; i += THREADS) {
            const u32 v = i / quads;
            if (served ? shared.seen[v] == 0 : shared.row[v] < 0) continue;
            store16(to.o(kv_head, first_vector + v, span) + i % quads * 4, reinterpret_cast<const uint4*>(image(v))[i % quads]);
        }
    }

    // Writes m and l of the tile's vectors, two a thread. What lies between the last vector and the end of its sector is written too.
    __device__ __forceinline__ void write_pairs(u32 span, const float* m, const float* l) {
        const u32 v = 2 * threadIdx.x, vector = first_vector + v;
        if (v < V && vector < store().padded())
            store16(store().pairs(kv_head, vector, span), floats16(m[v], l[v], m[v + 1], l[v + 1]));
    }

    // --- spans ---------------------------------------------------------------------------------------------------------

    template <class Products>
    __device__ __forceinline__ void span(const SpanPlace& span) {
        const u32 last = job.rows * group - 1 < first_vector + V - 1 ? job.rows * group - 1 : first_vector + V - 1;
        const u64 first_position = static_cast<u64>(job.first_position) + first_vector / group;
        const u64 last_position = static_cast<u64>(job.first_position) + last / group;
        if (last_position < static_cast<u64>(span.index) * SPAN) return;
        if (first_position < span.closed_from) Products::exact(*this, span);
        if (last_position >= span.closed_from) Products::closed(*this, span);
        if (!job.running) write_pairs(span.index, shared.m, shared.l);
    }

    template <class Products>
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
            this->template span<Products>(shared.place);
        }
        if (!job.running) return;
        put(state);
        write(0, false);
        write_pairs(0, shared.running_m, shared.running_l);
    }

    // The running state; zeros when it starts here.
    __device__ __forceinline__ void load_state(bool started) {
        const Store from = store();
        const u32 quads = shape.head_dim / 4;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < V * quads; i += THREADS) {
            const u32 v = i / quads;
            uint4 x = make16(0, 0, 0, 0);
            if (started && shared.row[v] >= 0) x = load16(from.o(kv_head, first_vector + v, 0) + i % quads * 4);
            reinterpret_cast<uint4*>(image(v))[i % quads] = x;
        }
        const u32 v = 2 * threadIdx.x, vector = first_vector + v;
        if (v < V) {
            uint4 x = make16(0, 0, 0, 0);
            if (started && vector < from.padded()) x = load16(from.pairs(kv_head, vector, 0));
            shared.running_m[v] = f32_of(x.x), shared.running_l[v] = f32_of(x.y);
            shared.running_m[v + 1] = f32_of(x.z), shared.running_l[v + 1] = f32_of(x.w);
        }
        __syncthreads();
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int c = 0; c < C; c++) state[c][v] = channel(c) < shape.head_dim ? image(v)[channel(c)] : 0.0f;
        }
    }
};

// One thread block: finds its unit and attends. `Products` has `exact(tile, span)` and `closed(tile, span)`: scores, softmax, sums.
template <int V, int C, class Products, class Shared>
__device__ __forceinline__ void attend(Shared& shared, const AttendShape& shape, u64 jobs, u64 spans, u32 count) {
    const u32 number = job_number<AttendJob>(jobs, count, blockIdx.x);
    fetch(shared.job, jobs + static_cast<u64>(number) * sizeof(AttendJob));
    __syncthreads();
    const AttendJob job = shared.job;
    const u32 unit = blockIdx.x - job.first, group = shape.heads / shape.kv_heads;
    const u32 tiles = (job.rows * group + V - 1) / V, tile_at = unit / shape.kv_heads;
    Tile<V, C, Shared> tile = {shared, shape, job, spans, unit % shape.kv_heads, tile_at % tiles * V, group, {}, {}};
    tile.template run<Products>(tile_at / tiles);
}

// Parameters of every kernel that attends: the jobs of a launch, the records of their spans, the shapes. `formats` holds, a byte each:
// element_bytes, key_bits, value_bits, query.
#define KV_ATTEND_PARAMETERS \
    u64 jobs, u64 spans, u32 count, u32 heads, u32 kv_heads, u32 head_dim, u32 block_tokens, u32 formats, u32 scale
#define KV_ATTEND_SHAPE \
    {heads, kv_heads, head_dim, block_tokens, formats & 255, formats >> 8 & 255, formats >> 16 & 255, formats >> 24, f32_of(scale)}
