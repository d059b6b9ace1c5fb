/* What must not hurt: nulls, sizes of other versions, queues that are full, handles that outlive their client, forks, no daemon; and lossy forms, with what they refuse. */
#include <kvtier.h>

#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(is_so)                                                                          \
    do {                                                                                      \
        if (!(is_so)) {                                                                       \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #is_so, kvtier_last_message());   \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

enum { BYTES = 64 };

static kvtier_identity identity(void) {
    kvtier_identity identity = {.size = sizeof identity, .dtype = "bf16", .block_tokens = 16, .layers = 1, .kv_heads = 1, .head_dim = 1};
    identity.layer_bytes = BYTES;
    return identity;
}

static kvtier_client *open_client(const char *socket, uint32_t queue_max) {
    kvtier_options options = {.size = sizeof options, .socket = socket, .queue_max = queue_max, .deadline_ms = 20000};
    kvtier_identity one = identity();
    kvtier_client *client = NULL;
    CHECK(kvtier_open(&options, &one, &client) == KVTIER_OK && client != NULL);
    return client;
}

static kvtier_result *next(kvtier_client *client) {
    struct pollfd ready = {.fd = kvtier_eventfd(client), .events = POLLIN};
    kvtier_result *result = NULL;
    size_t count = 0;
    while (count == 0) {
        CHECK(poll(&ready, 1, -1) >= 0);
        CHECK(kvtier_poll(client, &result, 1, &count) == KVTIER_OK);
    }
    return result;
}

static void nulls(void) {
    size_t count = 7;
    uint64_t op = 7;
    kvtier_result *result = NULL;
    CHECK(kvtier_open(NULL, NULL, NULL) == KVTIER_USAGE);
    CHECK(strlen(kvtier_last_message()) > 0);
    CHECK(kvtier_poll(NULL, &result, 1, &count) == KVTIER_USAGE && count == 0);
    CHECK(kvtier_submit_stats(NULL, &op) == KVTIER_USAGE && op == 0);
    CHECK(kvtier_submit_lookup(NULL, NULL, &op) == KVTIER_USAGE);
    CHECK(kvtier_submit_commit(NULL, NULL, &op) == KVTIER_USAGE);
    CHECK(kvtier_submit_prefetch(NULL, NULL, &op) == KVTIER_USAGE && kvtier_submit_prepare(NULL, &op) == KVTIER_USAGE);
    CHECK(kvtier_submit_explain(NULL, "request", &op) == KVTIER_USAGE);
    CHECK(kvtier_result_code(NULL) == KVTIER_USAGE && kvtier_result_op(NULL) == 0 && kvtier_result_count(NULL) == 0);
    CHECK(kvtier_result_take_leases(NULL) == NULL && kvtier_result_take_places(NULL) == NULL);
    CHECK(kvtier_eventfd(NULL) == -1 && !kvtier_is_connected(NULL) && !kvtier_lease_is_current(NULL, 0));
    CHECK(kvtier_place_state(NULL, 0) == KVTIER_OUTCOME_NONE && kvtier_leases_count(NULL) == 0);
    kvtier_result_free(NULL);
    kvtier_slabs_free(NULL);
    kvtier_leases_release(NULL);
    kvtier_places_free(NULL);
    kvtier_close(NULL);
}

static void versions(const char *socket) {
    /* As from a header that has one field more. */
    struct {
        kvtier_options known;
        uint64_t more;
    } options;
    memset(&options, 0, sizeof options);
    options.known.size = sizeof options;
    options.known.socket = socket;
    kvtier_identity one = identity();
    kvtier_client *client = NULL;
    CHECK(kvtier_open(&options.known, &one, &client) == KVTIER_OK);
    kvtier_close(client);
    options.more = 1;
    CHECK(kvtier_open(&options.known, &one, &client) == KVTIER_USAGE && client == NULL);
    options.known.size = 8;
    CHECK(kvtier_open(&options.known, &one, &client) == KVTIER_USAGE);
    options.known.size = sizeof options.known;
    one.layers = 0;
    CHECK(kvtier_open(&options.known, &one, &client) == KVTIER_USAGE && strstr(kvtier_last_message(), "layers") != NULL);
}

static void queues(const char *socket) {
    kvtier_client *client = open_client(socket, 2);
    uint64_t ops[3];
    CHECK(kvtier_submit_stats(client, &ops[0]) == KVTIER_OK && kvtier_submit_stats(client, &ops[1]) == KVTIER_OK);
    CHECK(kvtier_submit_stats(client, &ops[2]) == KVTIER_BUSY && ops[2] == 0);
    kvtier_result *result = next(client);
    CHECK(kvtier_result_op(result) == ops[0] && kvtier_result_text(result)[0] == '{');
    kvtier_result_free(result);
    CHECK(kvtier_submit_stats(client, &ops[2]) == KVTIER_OK);
    /* Two are not polled. */
    kvtier_close(client);
}

static void lifetimes(const char *socket) {
    uint8_t hashes[2][32] = {{1}, {2}};
    kvtier_run run = {.size = sizeof run, .hashes = hashes[0], .count = 2};
    uint64_t op = 0;
    kvtier_client *client = open_client(socket, 0);
    CHECK(kvtier_is_connected(client));
    uint8_t namespace[32];
    CHECK(kvtier_namespace(client, namespace) == KVTIER_OK);
    CHECK(kvtier_submit_reserve(client, &run, &op) == KVTIER_OK);
    kvtier_result *result = next(client);
    CHECK(kvtier_result_outcome(result, 1) == KVTIER_RESERVED && kvtier_result_outcome(result, 2) == KVTIER_OUTCOME_NONE);
    kvtier_places *places = kvtier_result_take_places(result);
    CHECK(places != NULL && kvtier_result_take_places(result) == NULL && kvtier_result_take_leases(result) == NULL);
    kvtier_result_free(result);
    for (size_t at = 0; at < 2; at++) {
        uint8_t *address = NULL;
        uint64_t bytes = 0;
        CHECK(kvtier_place_payload(places, at, &address, &bytes) == KVTIER_OK && bytes == BYTES);
        memset(address, 'x', bytes);
    }
    CHECK(kvtier_submit_commit(client, places, &op) == KVTIER_OK);
    /* Freed while it is committed. */
    kvtier_places_free(places);
    result = next(client);
    CHECK(kvtier_result_outcome(result, 0) == KVTIER_INSERTED && kvtier_result_outcome(result, 1) == KVTIER_INSERTED);
    kvtier_result_free(result);

    /* Leases and places outlive the client; places that nobody took go with their result. */
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_OK);
    result = next(client);
    kvtier_leases *leases = kvtier_result_take_leases(result);
    kvtier_result_free(result);
    hashes[0][1] = 9;
    CHECK(kvtier_submit_reserve(client, &run, &op) == KVTIER_OK);
    kvtier_result_free(next(client));
    CHECK(kvtier_submit_reserve(client, &run, &op) == KVTIER_OK);
    result = next(client);
    places = kvtier_result_take_places(result);
    kvtier_result_free(result);
    CHECK(kvtier_submit_reserve(client, &run, &op) == KVTIER_OK);
    kvtier_close(client);
    uint8_t read[BYTES];
    bool is_current = false;
    CHECK(kvtier_lease_read(leases, 1, 0, read, BYTES, &is_current) == KVTIER_OK && is_current && read[BYTES - 1] == 'x');
    CHECK(kvtier_lease_read(leases, 1, 1, read, BYTES, &is_current) == KVTIER_USAGE);
    CHECK(kvtier_lease_read(leases, 2, 0, read, 1, &is_current) == KVTIER_USAGE);
    kvtier_leases_release(leases);
    kvtier_places_free(places);
}

static void requests(const char *socket) {
    kvtier_client *client = open_client(socket, 0);
    uint8_t hash[32] = {0x77};
    char name[66];
    memset(name, 'n', sizeof name);
    name[65] = 0;
    uint64_t op = 0;
    CHECK(kvtier_submit_explain(client, NULL, &op) == KVTIER_USAGE && kvtier_submit_explain(client, name, &op) == KVTIER_USAGE);
    kvtier_run run = {.size = sizeof run, .hashes = hash, .count = 1, .request = name};
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_USAGE && op == 0);
    run.request = "one\ntwo";
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_USAGE);
    /* A caller from before the field: it is not read. */
    run.request = name;
    run.size = offsetof(kvtier_run, request);
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_OK);
    kvtier_result_free(next(client));
    /* Only the call that names a request is remembered under its name. */
    run.size = sizeof run;
    run.request = "named";
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_OK);
    kvtier_result_free(next(client));
    run.request = NULL;
    run.parent = hash;
    run.depth = 40;
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_OK);
    kvtier_result_free(next(client));
    CHECK(kvtier_submit_explain(client, "named", &op) == KVTIER_OK);
    kvtier_result *result = next(client);
    CHECK(kvtier_result_code(result) == KVTIER_OK && strstr(kvtier_result_text(result), "never_stored") != NULL);
    CHECK(strstr(kvtier_result_text(result), "\"position\":40") == NULL);
    kvtier_result_free(result);
    CHECK(kvtier_submit_explain(client, "unheard of", &op) == KVTIER_OK);
    result = next(client);
    CHECK(kvtier_result_code(result) == KVTIER_REFUSED);
    kvtier_result_free(result);
    kvtier_close(client);
}

/* bf16 of a small whole number. */
static uint16_t bf16(int value) {
    float number = (float)value;
    uint32_t bits = 0;
    memcpy(&bits, &number, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void lossy(const char *socket) {
    enum { TOKENS = 8, CHANNELS = 8, SIDE = TOKENS * CHANNELS, LAYER = 2 * 2 * SIDE };
    kvtier_options options = {.size = sizeof options, .socket = socket, .deadline_ms = 20000};
    kvtier_identity one = {.size = sizeof one, .dtype = "bf16", .block_tokens = TOKENS, .layers = 1, .kv_heads = 1, .head_dim = CHANNELS};
    one.layer_bytes = LAYER;
    one.form = "i8h";
    one.engine_tokens = TOKENS;
    one.keys = (kvtier_strides){.first = 0, .heads = SIDE, .tokens = CHANNELS, .channels = 1};
    one.values = one.keys;
    kvtier_client *client = NULL;
    CHECK(kvtier_open(&options, &one, &client) == KVTIER_USAGE && strstr(kvtier_last_message(), "where another is") != NULL);
    one.values.first = SIDE;
    one.form = "q4_0";
    CHECK(kvtier_open(&options, &one, &client) == KVTIER_USAGE && strstr(kvtier_last_message(), "q4_0") != NULL);
    one.form = "i8h";
    CHECK(kvtier_open(&options, &one, &client) == KVTIER_OK);

    /* Three blocks; the second one is not to be stored. Each token's largest value is 127 or -127, so that whole numbers are what the form has. */
    enum { BLOCK = 2 * SIDE };
    uint16_t memory[4 * BLOCK] = {0};
    for (int at = 0; at < 3 * BLOCK; at++) {
        memory[at] = bf16(at % CHANNELS == 0 ? 127 : (at * 37) % 255 - 127);
    }
    memory[BLOCK + 77] = 0x7fc0;
    void *address = memory;
    uint64_t bytes = sizeof memory;
    kvtier_slabs *slabs = NULL;
    CHECK(kvtier_slabs_new(&address, &bytes, 1, LAYER, 0, true, &slabs) == KVTIER_OK);
    uint8_t hashes[3][32] = {{0x51}, {0x52}, {0x53}};
    kvtier_run run = {.size = sizeof run, .hashes = hashes[0], .count = 3};
    uint32_t blocks[] = {0, 1, 2};
    uint64_t op = 0;
    CHECK(kvtier_submit_store(client, &run, slabs, blocks, 3, &op) == KVTIER_OK);
    kvtier_result *result = next(client);
    CHECK(kvtier_result_outcome(result, 0) == KVTIER_INSERTED && kvtier_result_outcome(result, 1) == KVTIER_UNFIT);
    CHECK(kvtier_result_outcome(result, 2) == KVTIER_INSERTED);
    kvtier_result_free(result);
    blocks[0] = 3;
    CHECK(kvtier_submit_load(client, &run, slabs, blocks, 3, &op) == KVTIER_OK);
    result = next(client);
    CHECK(kvtier_result_count(result) == 1 && memcmp(memory + 3 * BLOCK, memory, LAYER) == 0);
    kvtier_result_free(result);

    /* Bytes in place mean nothing to an engine. */
    CHECK(kvtier_submit_reserve(client, &run, &op) == KVTIER_OK);
    result = next(client);
    CHECK(kvtier_result_code(result) == KVTIER_USAGE);
    kvtier_result_free(result);
    CHECK(kvtier_submit_acquire(client, &run, &op) == KVTIER_OK);
    result = next(client);
    kvtier_leases *leases = kvtier_result_take_leases(result);
    kvtier_result_free(result);
    const uint8_t *payload = NULL;
    CHECK(kvtier_leases_count(leases) == 1 && kvtier_lease_payload(leases, 0, &payload, &bytes) == KVTIER_USAGE);
    kvtier_leases_release(leases);
    kvtier_slabs_free(slabs);
    kvtier_close(client);
}

static void forks(const char *socket) {
    kvtier_client *client = open_client(socket, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        uint64_t op = 0;
        CHECK(kvtier_submit_stats(client, &op) == KVTIER_FORKED);
        CHECK(!kvtier_is_connected(client));
        kvtier_close(client);
        /* What is forgotten here is the parent's, and no leak: another program has none. */
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uint64_t op = 0;
    CHECK(kvtier_submit_stats(client, &op) == KVTIER_OK);
    kvtier_result *result = next(client);
    CHECK(kvtier_result_code(result) == KVTIER_OK);
    kvtier_result_free(result);
    kvtier_close(client);
}

static void no_daemon(void) {
    kvtier_client *client = open_client("/nonexistent/kvtier.sock", 0);
    uint64_t op = 0;
    CHECK(!kvtier_is_connected(client) && kvtier_submit_stats(client, &op) == KVTIER_OK);
    kvtier_result *result = next(client);
    CHECK(kvtier_result_code(result) == KVTIER_NOT_CONNECTED && strlen(kvtier_result_message(result)) > 0);
    kvtier_result_free(result);
    kvtier_close(client);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    nulls();
    versions(argv[1]);
    queues(argv[1]);
    lifetimes(argv[1]);
    requests(argv[1]);
    lossy(argv[1]);
    forks(argv[1]);
    no_daemon();
    return 0;
}
