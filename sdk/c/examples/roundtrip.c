/*
 * An engine in a page of C: stores blocks of its own bytes, loads them into other places, reads one where it lies, and writes one in place.
 *
 *     cc roundtrip.c $(pkg-config --cflags --libs kvtier) -o roundtrip && ./roundtrip SOCKET
 *
 * Prints what it did; exits 0 when everything came back as it was.
 */
#include <kvtier.h>

#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, POOL = 8, BLOCKS = 3, BLOCK_BYTES = 1000 };

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(kvtier_code code, const char *what) {
    if (code != KVTIER_OK) {
        fail(what, kvtier_last_message());
    }
}

/* An engine would have this descriptor in its own loop, and go on with other things. */
static kvtier_result *wait_for(kvtier_client *client, uint64_t op, const char *what) {
    struct pollfd ready = {.fd = kvtier_eventfd(client), .events = POLLIN};
    kvtier_result *result = NULL;
    size_t count = 0;
    while (count == 0) {
        if (poll(&ready, 1, -1) < 0) {
            fail(what, "poll");
        }
        check(kvtier_poll(client, &result, 1, &count), what);
    }
    if (kvtier_result_op(result) != op || kvtier_result_code(result) != KVTIER_OK) {
        fail(what, kvtier_result_message(result));
    }
    return result;
}

static kvtier_client *open_client(const char *socket) {
    kvtier_options options = {.size = sizeof options, .socket = socket, .name = "roundtrip.c", .deadline_ms = 20000};
    kvtier_identity identity = {
        .size = sizeof identity,
        .weights = {7},
        .architecture = "llama",
        .dtype = "bf16",
        .block_tokens = 16,
        .layers = LAYERS,
        .kv_heads = 2,
        .head_dim = 8,
        .layout = "an example's",
        .layer_bytes = BLOCK_BYTES,
    };
    kvtier_client *client = NULL;
    check(kvtier_open(&options, &identity, &client), "open");
    return client;
}

/* Hashes are the engine's: any 32 bytes that name a block and all before it. */
static void make_hashes(uint8_t hashes[][32], size_t count) {
    memset(hashes, 0, count * 32);
    for (size_t at = 0; at < count; at++) {
        hashes[at][0] = (uint8_t)(at + 1);
    }
}

static void in_place(kvtier_client *client, const kvtier_run *run, const uint8_t *expected) {
    uint64_t op = 0;
    check(kvtier_submit_acquire(client, run, &op), "acquire");
    kvtier_result *result = wait_for(client, op, "acquire");
    kvtier_leases *leases = kvtier_result_take_leases(result);
    kvtier_result_free(result);
    const uint8_t *address = NULL;
    uint64_t bytes = 0;
    check(kvtier_lease_payload(leases, 0, &address, &bytes), "payload");
    int is_equal = bytes == LAYERS * BLOCK_BYTES && memcmp(address, expected, BLOCK_BYTES) == 0;
    /* Only now it is known what was read. */
    if (!is_equal || !kvtier_lease_is_current(leases, 0)) {
        fail("read in place", "other bytes");
    }
    printf("read in place: %zu blocks\n", kvtier_leases_count(leases));
    kvtier_leases_release(leases);
}

static void write_in_place(kvtier_client *client, const kvtier_run *run) {
    uint64_t op = 0;
    check(kvtier_submit_reserve(client, run, &op), "reserve");
    kvtier_result *result = wait_for(client, op, "reserve");
    kvtier_places *places = kvtier_result_take_places(result);
    kvtier_result_free(result);
    uint8_t *address = NULL;
    uint64_t bytes = 0;
    check(kvtier_place_payload(places, 0, &address, &bytes), "place");
    memset(address, 'w', bytes);
    check(kvtier_submit_commit(client, places, &op), "commit");
    result = wait_for(client, op, "commit");
    if (kvtier_result_outcome(result, 0) != KVTIER_INSERTED) {
        fail("commit", "not inserted");
    }
    printf("written in place: %zu block\n", kvtier_result_count(result));
    kvtier_result_free(result);
    kvtier_places_free(places);
}

int main(int argc, char **argv) {
    kvtier_client *client = open_client(argc > 1 ? argv[1] : NULL);
    uint8_t hashes[BLOCKS + 2][32];
    make_hashes(hashes, BLOCKS + 2);
    kvtier_run run = {.size = sizeof run, .hashes = hashes[0], .count = BLOCKS};

    /* The engine's memory: a slab for each layer. */
    uint8_t *pool = calloc(LAYERS, POOL * BLOCK_BYTES);
    void *addresses[LAYERS] = {pool, pool + POOL * BLOCK_BYTES};
    uint64_t lengths[LAYERS] = {POOL * BLOCK_BYTES, POOL * BLOCK_BYTES};
    for (size_t at = 0; at < LAYERS * POOL * BLOCK_BYTES; at++) {
        pool[at] = (uint8_t)(at * 31 % 251);
    }
    kvtier_slabs *slabs = NULL;
    check(kvtier_slabs_new(addresses, lengths, LAYERS, BLOCK_BYTES, 0, true, &slabs), "slabs");

    uint64_t op = 0;
    check(kvtier_submit_prepare(client, &op), "prepare");
    kvtier_result *result = wait_for(client, op, "prepare");
    kvtier_result_free(result);

    const uint32_t from[BLOCKS] = {0, 1, 2}, to[BLOCKS] = {5, 4, 7};
    check(kvtier_submit_store(client, &run, slabs, from, BLOCKS, &op), "store");
    result = wait_for(client, op, "store");
    for (size_t at = 0; at < kvtier_result_count(result); at++) {
        if (kvtier_result_outcome(result, at) != KVTIER_INSERTED) {
            fail("store", "not inserted");
        }
    }
    printf("stored: %zu blocks\n", kvtier_result_count(result));
    kvtier_result_free(result);

    /* One more than there are: the run ends before it, and the result says why. The daemon remembers it under the name of the engine's request. */
    const uint32_t and_one[BLOCKS + 1] = {to[0], to[1], to[2], 6};
    run.count = BLOCKS + 1;
    run.request = "request-1";
    check(kvtier_submit_load(client, &run, slabs, and_one, BLOCKS + 1, &op), "load");
    result = wait_for(client, op, "load");
    for (size_t at = 0; at < BLOCKS; at++) {
        for (size_t layer = 0; layer < LAYERS; layer++) {
            const uint8_t *slab = addresses[layer];
            if (memcmp(slab + from[at] * BLOCK_BYTES, slab + to[at] * BLOCK_BYTES, BLOCK_BYTES) != 0) {
                fail("load", "other bytes");
            }
        }
    }
    printf("loaded: %zu blocks, then %s\n", kvtier_result_count(result), kvtier_miss_name(kvtier_result_miss(result)));
    kvtier_result_free(result);
    run.request = NULL;
    check(kvtier_submit_explain(client, "request-1", &op), "explain");
    result = wait_for(client, op, "explain");
    printf("explained: %s\n", strstr(kvtier_result_text(result), "never_stored") != NULL ? "never_stored" : kvtier_result_text(result));
    kvtier_result_free(result);

    run.count = 1;
    in_place(client, &run, pool);
    kvtier_run next = {.size = sizeof next, .hashes = hashes[BLOCKS], .count = 1, .parent = hashes[BLOCKS - 1], .depth = BLOCKS};
    write_in_place(client, &next);

    /* Ahead of a load: what the disk alone has is on its way when this returns. */
    run.count = BLOCKS + 1;
    check(kvtier_submit_prefetch(client, &run, &op), "prefetch");
    result = wait_for(client, op, "prefetch");
    printf("in memory or on their way: %zu blocks\n", kvtier_result_count(result));
    kvtier_result_free(result);

    check(kvtier_submit_lookup(client, &run, &op), "lookup");
    result = wait_for(client, op, "lookup");
    printf("found: %zu blocks\n", kvtier_result_count(result));
    kvtier_result_free(result);

    kvtier_slabs_free(slabs);
    kvtier_close(client);
    free(pool);
    return 0;
}
