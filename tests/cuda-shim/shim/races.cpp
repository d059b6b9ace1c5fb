// Runs every kernel once or more under random orders of threads, for ThreadSanitizer to watch (tests/races.rs): `races all SEED...`, or
// `races grids SEED...` for the codecs i8h and kc4vt4 alone. Tables are words, as the launchers of gpu-tier/src/cuda/kernels lay them out.
// Names what it ran.
#include <stdio.h>
#include <stdlib.h>

#include <set>
#include <string>
#include <vector>

#include "cuda_host.h"

extern "C" int shim_launch(const char*, const unsigned*, const unsigned*, void**, unsigned, unsigned long long, char*, size_t);

typedef unsigned long long u64;

static unsigned long long state;
static std::set<std::string> ran;
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
    ran.insert(name);
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

// A kernel of attention: query vectors of a tile, channels of a head.
struct Kernel {
    const char* name;
    unsigned tile, dim;
};

// Bits of closed keys and values, and the element of queries: f32, bf16, f16.
struct Formats {
    unsigned keys, values, queries;
};

// Three spans of one sequence, one of which some rows read closed; partials or a running state. More than one tile, but for the kernel
// that has few vectors.
static void attend(Kernel kernel, unsigned running, Formats of) {
    unsigned dim = kernel.dim, kv_heads = 1, rows = 3, first_position = 190, block_tokens = 64;
    unsigned heads = kernel.tile == 4 ? 1 : kernel.tile * 3 / 8;
    const unsigned vectors = rows * heads / kv_heads, spans = 3, store_spans = running ? 1 : spans;
    const u64 store = blank(4 * kv_heads * store_spans * (vectors * dim + 2 * ((vectors + 3) / 4 * 4)));
    std::vector<u64> list;
    for (unsigned i = 0; i < spans; i++) {
        const u64 exact = bf16(2 * dim * 64);
        u64 place[] = {exact, exact, exact, exact, bf16(2 * dim), bf16(4 * 64), bf16(dim * 64), words(i, i == 1 ? 191 : 0xffffffffu)};
        list.insert(list.end(), place, place + 8);
    }
    u64 places = table(list);
    // Exact elements have 2 bytes.
    unsigned formats = 2 | of.keys << 8 | of.values << 16 | of.queries << 24, scale_bits;
    const float scale = 0.125f;
    memcpy(&scale_bits, &scale, 4);
    const u64 queries = of.queries == 0 ? floats(rows * heads * dim) : bf16(rows * heads * dim);
    u64 jobs = table({queries, store, 0, words(store_spans, 0), words(rows, spans), words(first_position, running), 0, 0});
    const unsigned tiles = (vectors + kernel.tile - 1) / kernel.tile;
    run(kernel.name, tiles * kv_heads * store_spans, 1, 64,
        {&jobs, &places, &one, &heads, &kv_heads, &dim, &block_tokens, &formats, &scale_bits});
    u64 merge = table({store, blank(4 * rows * heads * dim), words(store_spans, 0), words(rows, first_position), words(running, 0), 0, 0, 0});
    run("kvtier_finish", (vectors + 3) / 4 * kv_heads, 1, 64, {&merge, &one, &heads, &kv_heads, &dim});
}

// Each kernel with partials or a running state, the other way round in the next round; pairs of forms and elements of queries in turn.
static void attention(unsigned round) {
    const Kernel kernels[] = {
        {"kvtier_attend_v4_c1", 4, 64},       {"kvtier_attend_v4_c2", 4, 128},      {"kvtier_attend_v4_c4", 4, 256},
        {"kvtier_attend_v8_c1", 8, 64},       {"kvtier_attend_v8_c2", 8, 128},      {"kvtier_attend_v8_c4", 8, 256},
        {"kvtier_attend_mma_v8_c1", 8, 64},   {"kvtier_attend_mma_v8_c2", 8, 128},  {"kvtier_attend_mma_v8_c4", 8, 256},
        {"kvtier_attend_mma_v16_c1", 16, 64}, {"kvtier_attend_mma_v16_c2", 16, 128},
    };
    unsigned turn = 5 * round;
    for (const Kernel& kernel : kernels) {
        attend(kernel, turn % 2, {turn / 2 % 2 ? 8u : 4u, turn / 4 % 2 ? 8u : 4u, turn % 3});
        turn++;
    }
}

int main(int count, char** arguments) {
    const bool all = count > 1 && !strcmp(arguments[1], "all");
    for (int i = 2; i < count; i++) {
        state = 88172645463325252ull ^ strtoull(arguments[i], nullptr, 10) * 0x9e3779b97f4a7c15ull;
        grids();
        if (!all) continue;
        sx12();
        rate();
        append_and_sum();
        attention(i - 2);
    }
    for (const std::string& name : ran) printf("ran %s\n", name.c_str());
    return 0;
}
