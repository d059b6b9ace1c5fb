// Runs every kernel once or more under random orders of threads, for ThreadSanitizer to watch (tests/races.rs). Tables are words, as the
// launchers of gpu-tier/src/cuda/kernels lay them out.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "cuda_host.h"

extern "C" int shim_launch(const char*, const unsigned*, const unsigned*, void**, unsigned, unsigned long long, char*, size_t);

typedef unsigned long long u64;

static unsigned long long state = 88172645463325252ull;
static unsigned random32() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<unsigned>(state >> 16);
}

// Memory at a multiple of 256 bytes, that lives as long as the program.
static u64 memory(size_t bytes) { return reinterpret_cast<u64>(aligned_alloc(256, (bytes + 255) / 256 * 256)); }

static u64 table(const std::vector<u64>& words) {
    u64 at = memory(words.size() * 8);
    memcpy(reinterpret_cast<void*>(at), words.data(), words.size() * 8);
    return at;
}

static u64 words(unsigned low, unsigned high) { return low | static_cast<u64>(high) << 32; }

static u64 bf16(size_t count) {
    u64 at = memory(2 * count);
    for (size_t i = 0; i < count; i++) reinterpret_cast<unsigned short*>(at)[i] = static_cast<unsigned short>(0x3e00 + random32() % 512) | (random32() & 0x8000);
    return at;
}

static u64 floats(size_t count) {
    u64 at = memory(4 * count);
    for (size_t i = 0; i < count; i++) reinterpret_cast<float*>(at)[i] = static_cast<int>(random32() % 2000) / 1000.0f - 1.0f;
    return at;
}

static u64 blank(size_t bytes) {
    u64 at = memory(bytes);
    memset(reinterpret_cast<void*>(at), 0, bytes);
    return at;
}

static void run(const char* name, unsigned x, unsigned y, unsigned threads, std::vector<void*> parameters) {
    const unsigned grid[3] = {x, y, 1}, block[3] = {threads, 1, 1};
    char problem[512];
    if (shim_launch(name, grid, block, parameters.data(), 2, random32(), problem, sizeof problem)) {
        fprintf(stderr, "%s\n", problem);
        exit(1);
    }
}

static unsigned one = 1, two = 2;

// Two parts, 64 by 64: keys with a scale a lane (i8h), values.
static void grids() {
    for (unsigned by_lane = 0; by_lane < 2; by_lane++) {
        std::vector<u64> parts;
        u64 verdict = blank(4);
        for (int i = 0; i < 2; i++) {
            u64 part[] = {bf16(4096), blank(256), blank(4096), verdict, words(64, 64), by_lane, 0, 0};
            parts.insert(parts.end(), part, part + 8);
        }
        u64 at = table(parts);
        run("kvtier_i8h_encode", 2, 1, 64, {&at, &two, &one});
        run("kvtier_i8h_decode", 2, 1, 64, {&at, &one});
        if (by_lane) continue;
        run("kvtier_kc4vt4_encode", 2, 1, 64, {&at, &two, &one});
        run("kvtier_kc4vt4_decode", 2, 1, 64, {&at, &one});
    }
}

// A layer of four parts whose escapes fit their shares of the area, and one in which a part has more than its share.
static void sx12() {
    for (unsigned area : {256u, 60u}) {
        std::vector<u64> parts;
        u64 values = bf16(4 * 4096), windows = blank(8), escapes = blank(256), verdict = blank(4);
        for (unsigned i = 0; i < 4; i++) {
            u64 own = values + i * 8192;
            // Some escapes, and in one part so many that its window is searched for.
            for (unsigned e = 0; e < (i == 2 ? 40u : 5u); e++) reinterpret_cast<unsigned short*>(own)[random32() % 4096] = 0x1000;
            u64 part[] = {own, blank(6144), windows, escapes, verdict, words(4096, i), words(4, area), 0};
            parts.insert(parts.end(), part, part + 8);
        }
        u64 at = table(parts);
        run("kvtier_sx12_encode", 4, 1, 128, {&at, &one});
        run("kvtier_sx12_escapes", 4, 1, 128, {&at, &one});
        run("kvtier_sx12_decode", 4, 1, 128, {&at, &one, &two});
    }
}

static void rate() {
    const u64 sums = blank(2 * 256 * 4);
    u64 at = table({sums});
    run("kvtier_rate", 2, 1, 256, {&at, &two});
    for (int i = 0; i < 2 * 256; i++) {
        if (reinterpret_cast<float*>(sums)[i] == 2 * 16.0f) continue;
        fprintf(stderr, "kvtier_rate: a sum is wrong\n");
        exit(1);
    }
}

static void append_and_sum() {
    u64 section = blank(2 * 2 * 64 * 64 * 2);
    u64 runs = table({floats(20 * 128), floats(20 * 128), section, words(20, 13), words(2, 64), words(64, 2)});
    run("kvtier_append", 1, 2, 128, {&runs});
    u64 jobs = table({bf16(20000), 40000, 7, blank(8), section, 200, 0, blank(8)});
    run("kvtier_xxh3", 2, 1, 128, {&jobs});
    u64 pieces = table({section, blank(16384), 16384, section + 2, blank(16384), 4099}), clears = table({blank(4), blank(4)});
    run("kvtier_gather", 2, 1, 256, {&pieces, &two});
    run("kvtier_clear", 1, 1, 256, {&clears, &two});
}

// Three spans of one sequence, one of which some rows read closed; partials or a running state.
static void attend(const char* kernel, unsigned running, unsigned bits) {
    unsigned dim = 64, kv_heads = 1, heads = 3, rows = 3, first_position = 190, block_tokens = 64;
    const unsigned vectors = rows * heads / kv_heads, spans = 3, store_spans = running ? 1 : spans;
    const u64 store = blank(4 * kv_heads * store_spans * (vectors * dim + 2 * ((vectors + 3) / 4 * 4)));
    std::vector<u64> list;
    for (unsigned i = 0; i < spans; i++) {
        const u64 exact = bf16(2 * dim * 64);
        u64 place[] = {exact, exact, exact, exact, bf16(2 * dim), bf16(4 * 64), bf16(dim * 64), words(i, i == 1 ? 191 : 0xffffffffu)};
        list.insert(list.end(), place, place + 8);
    }
    u64 places = table(list);
    // Elements of 2 bytes, bits of keys and of values, queries of f32.
    unsigned formats = 2 | bits << 8 | bits << 16, scale_bits;
    const float scale = 0.125f;
    memcpy(&scale_bits, &scale, 4);
    u64 jobs = table({floats(rows * heads * dim), store, 0, words(store_spans, 0), words(rows, spans), words(first_position, running), 0, 0});
    const unsigned tiles = (vectors + 7) / 8;
    run(kernel, tiles * kv_heads * store_spans, 1, 64, {&jobs, &places, &one, &heads, &kv_heads, &dim, &block_tokens, &formats, &scale_bits});
    u64 merge = table({store, blank(4 * rows * heads * dim), words(store_spans, 0), words(rows, first_position), words(running, 0), 0, 0, 0});
    run("kvtier_finish", (vectors + 3) / 4 * kv_heads, 1, 64, {&merge, &one, &heads, &kv_heads, &dim});
}

int main() {
    grids();
    sx12();
    rate();
    append_and_sum();
    for (unsigned running = 0; running < 2; running++)
        for (unsigned bits = 4; bits <= 8; bits += 4)
            for (const char* kernel : {"kvtier_attend_v8_c1", "kvtier_attend_mma_v8_c1"}) attend(kernel, running, bits);
    puts("all kernels ran");
    return 0;
}
