/*
 * kvtier: KV blocks of any engine, shared between processes and kept over restarts. The C ABI.
 *
 * docs/sdk-c.md tells the order of the calls and what must never be done. Made from sdk/c/src by cbindgen; a test compares them.
 */

#ifndef KVTIER_H
#define KVTIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// In the place of an engine's block in a load: this part of the stored block goes nowhere.
#define KVTIER_SKIP 4294967295

// How a call ended.
enum kvtier_code
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It was done.
  KVTIER_OK = 0,
  // There is no daemon, or it went away during the call. The client connects again by itself.
  KVTIER_NOT_CONNECTED = 1,
  // Not done in time.
  KVTIER_DEADLINE = 2,
  // Reading or writing the socket failed in another way.
  KVTIER_IO = 3,
  // The daemon speaks another language.
  KVTIER_PROTOCOL = 4,
  // The daemon sends memory that cannot be used.
  KVTIER_MEMORY = 5,
  // Arguments that make no sense: the caller's bug.
  KVTIER_USAGE = 6,
  // Used across a fork. Each process opens a client of its own.
  KVTIER_FORKED = 7,
  // Used after it was closed or committed.
  KVTIER_CLOSED = 8,
  // The daemon refuses; the message says why.
  KVTIER_REFUSED = 9,
  // As many calls are under way as the client takes: poll first.
  KVTIER_BUSY = 10,
  // A bug in kvtier. The client is good still.
  KVTIER_PANIC = 11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvtier_code kvtier_code;
#else
typedef uint32_t kvtier_code;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What became of a block that was to be stored.
enum kvtier_outcome
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // There is no such block in this result.
  KVTIER_OUTCOME_NONE = 0,
  // It is stored.
  KVTIER_INSERTED = 1,
  // It was there first.
  KVTIER_PRESENT = 2,
  // Another client is writing it.
  KVTIER_PENDING = 3,
  // There is no room for it, or no leave.
  KVTIER_FULL = 4,
  // The bytes changed while they were handed over.
  KVTIER_FAILED_CHECK = 5,
  // The daemon knows of no such reservation.
  KVTIER_UNKNOWN = 6,
  // It was given up here.
  KVTIER_ABANDONED = 7,
  // The place is the engine's to fill.
  KVTIER_RESERVED = 8,
  // Its values do not fit the form that it was to be stored in: a NaN, an infinity, or beyond what a header holds.
  KVTIER_UNFIT = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvtier_outcome kvtier_outcome;
#else
typedef uint32_t kvtier_outcome;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where a block was found.
enum kvtier_tier
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It was not.
  KVTIER_TIER_NONE = 0,
  // Device memory.
  KVTIER_TIER_DEVICE = 1,
  // The daemon's memory.
  KVTIER_TIER_HOST = 2,
  // Its disk.
  KVTIER_TIER_DISK = 3,
  // A shared store.
  KVTIER_TIER_REMOTE = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kvtier_tier kvtier_tier;
#else
typedef uint32_t kvtier_tier;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A client of one daemon, for the blocks of one namespace. Its functions may be called from any thread, several at once, but for
// `kvtier_close`.
typedef struct kvtier_client kvtier_client;

// Blocks that are leased: the longest run that was there.
typedef struct kvtier_leases kvtier_leases;

// Places for a run of blocks.
typedef struct kvtier_places kvtier_places;

// What became of a call; freed with `kvtier_result_free`.
typedef struct kvtier_result kvtier_result;

// An engine's memory: one slab a layer. Engine block `b` of a layer is the bytes `[b * stride, b * stride + block_bytes)` of its slab.
typedef struct kvtier_slabs kvtier_slabs;

// How a client is opened. Zero in a field means its default.
typedef struct kvtier_options {
  // `sizeof(kvtier_options)`.
  size_t size;
  // Path of the daemon's socket; null: `$KVTIER_SOCKET`, else the default one.
  const char *socket;
  // What the client calls itself, at most 64 bytes; null: `c`.
  const char *name;
  // How long one call may take, loads from the disk among them; 0: 2,000.
  uint32_t deadline_ms;
  // Calls that may be under way or wait to be polled; 0: 64. At most 65,536.
  uint32_t queue_max;
} kvtier_options;

// Where the keys or the values of a layer are in an engine's block, in elements of 16 bits: that of a head, token and channel is number
// `first + head * heads + token * tokens + channel * channels`.
typedef struct kvtier_strides {
  // The first one's.
  uint32_t first;
  // From a head to the next.
  uint32_t heads;
  // From a token to the next.
  uint32_t tokens;
  // From a channel to the next.
  uint32_t channels;
} kvtier_strides;

// Everything that two blocks must share to stand for each other. What differs in any field never meets. Texts may be null for empty.
typedef struct kvtier_identity {
  // `sizeof(kvtier_identity)`.
  size_t size;
  // Digest of the weights.
  uint8_t weights[32];
  // Architecture name.
  const char *architecture;
  // Element type of keys and values.
  const char *dtype;
  // Tokens of a stored block.
  uint32_t block_tokens;
  // Layers of this process.
  uint32_t layers;
  // KV heads of this rank.
  uint32_t kv_heads;
  // Channels of a head.
  uint32_t head_dim;
  // Tensor-parallel rank.
  uint32_t tensor_parallel_rank;
  // Ranks there are; 0: 1.
  uint32_t tensor_parallel_size;
  // Pipeline rank.
  uint32_t pipeline_rank;
  // Ranks there are; 0: 1.
  uint32_t pipeline_size;
  // Channels that RoPE rotates; 0: none.
  uint32_t rope_dimensions;
  // RoPE's base frequency.
  float rope_base;
  // RoPE's scaling.
  const char *rope_scaling;
  // Adapter.
  const char *adapter;
  // How the numbers come about: engine, its revision, device kind, kernels.
  const char *numerics;
  // How the bytes of a layer are laid out, in words and numbers of the engine's own.
  const char *layout;
  // The tenant's salt; null: none, which is another tenant than the empty salt's.
  const char *salt;
  // Bytes of one layer of a stored block in the engine's memory, keys and values together.
  uint32_t layer_bytes;
  // The lossy form to store blocks in, such as `kc4vt4`; null: their bytes as they are. With it `dtype` is bf16, and all that follows is read.
  const char *form;
  // Tokens of one of the engine's blocks.
  uint32_t engine_tokens;
  // Where its keys are.
  struct kvtier_strides keys;
  // Where its values are.
  struct kvtier_strides values;
} kvtier_identity;

// Consecutive blocks of one chain.
typedef struct kvtier_run {
  // `sizeof(kvtier_run)`.
  size_t size;
  // Hashes of 32 bytes, one after the other: each block the child of the one before.
  const uint8_t *hashes;
  // How many.
  size_t count;
  // Hash of the block before the first one; null exactly when `depth` is 0.
  const uint8_t *parent;
  // Blocks before the first one.
  uint32_t depth;
  // The engine's own request that the call is for, at most 64 bytes, to be asked for by `kvtier_submit_explain`; null: none. Names are shown to
  // whoever may ask the daemon.
  const char *request;
} kvtier_run;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Opens a client. Without a daemon it is opened as well: every call ends with `KVTIER_NOT_CONNECTED` until there is one.
//
// # Safety
// `options` and `identity` have the sizes that they say, their texts are null or C strings, and `out` may be written.
kvtier_code kvtier_open(const struct kvtier_options *options,
                        const struct kvtier_identity *identity,
                        struct kvtier_client **out);

// Closes a client: waits for the call that is being made, for its deadline at most, and drops those that wait, and results that
// were not polled. Afterwards
// nothing touches the engine's memory. Leases and places stay good, and are freed as ever. In a process that was forked it only
// forgets the client. Null is nothing.
//
// # Safety
// `client` is null or a client that was not closed; nobody uses it any more.
void kvtier_close(struct kvtier_client *client);

// True while there is a connection.
//
// # Safety
// `client` is null or a client that was not closed.
bool kvtier_is_connected(const struct kvtier_client *client);

// Writes the digest of everything that makes blocks compatible: 32 bytes.
//
// # Safety
// `client` is a client that was not closed, and 32 bytes may be written to `out`.
kvtier_code kvtier_namespace(const struct kvtier_client *client, uint8_t *out);

// A descriptor that is readable exactly while there are results to poll; for poll, select and epoll, and nothing else. It ends
// with the client. -1 for null.
//
// # Safety
// `client` is null or a client that was not closed.
int kvtier_eventfd(const struct kvtier_client *client);

// Takes results that are there, the oldest first, at most `most`, and never waits. Each is the caller's, who frees it.
//
// # Safety
// `client` is a client that was not closed; `most` pointers may be written to `out`, and `count` may be.
kvtier_code kvtier_poll(const struct kvtier_client *client, struct kvtier_result **out, size_t most, size_t *count);

// The name of a miss reason, such as `never_stored`; empty for 0, `unknown` for a number that is none. Never freed.
const char *kvtier_miss_name(uint32_t miss);

// Why the last call of this thread that failed did so: one sentence in UTF-8, good until the next one fails. Empty when none has.
const char *kvtier_last_message(void);

// Blocks that are leased; 0 for null.
//
// # Safety
// `leases` is null or was not released.
size_t kvtier_leases_count(const struct kvtier_leases *leases);

// Where a block lies: layers, one after the other. Readable until the leases are released, never writable; what is read is the
// block only if `kvtier_lease_is_current` says so
// afterwards.
//
// # Safety
// `leases` was not released; `address` and `bytes` may be written.
kvtier_code kvtier_lease_payload(const struct kvtier_leases *leases,
                                 size_t block,
                                 const uint8_t **address,
                                 uint64_t *bytes);

// Copies bytes of a block, and tells whether they are the block's.
//
// # Safety
// `leases` was not released; `bytes` bytes may be written to `target`, and `is_current` may be written.
kvtier_code kvtier_lease_read(const struct kvtier_leases *leases,
                              size_t block,
                              uint64_t offset,
                              uint8_t *target,
                              size_t bytes,
                              bool *is_current);

// True when all that was read of a block so far is the block. To be asked after the last read.
//
// # Safety
// `leases` is null or was not released.
bool kvtier_lease_is_current(const struct kvtier_leases *leases, size_t block);

// Gives leases back, with the client's next call. Null is nothing.
//
// # Safety
// `leases` is null or was not released; neither it nor memory that it showed is used any more.
void kvtier_leases_release(struct kvtier_leases *leases);

// How a place stands: `KVTIER_RESERVED`, or what became of its block. Waits for a commit that is being made.
//
// # Safety
// `places` is null or was not freed.
kvtier_outcome kvtier_place_state(const struct kvtier_places *places, size_t place);

// Where a block is to be written, all of it: layers, one after the other. Writable until its commit is submitted, or the places
// are freed. `KVTIER_CLOSED` unless the place is
// reserved.
//
// # Safety
// `places` was not freed; `address` and `bytes` may be written.
kvtier_code kvtier_place_payload(const struct kvtier_places *places,
                                 size_t place,
                                 uint8_t **address,
                                 uint64_t *bytes);

// Frees places, and gives up those that were not committed, soon. Null is nothing.
//
// # Safety
// `places` is null or was not freed; neither it nor memory that it showed is used any more.
void kvtier_places_free(struct kvtier_places *places);

// The number that its submission gave; 0 for null.
//
// # Safety
// `result` is null or a result that was not freed.
uint64_t kvtier_result_op(const struct kvtier_result *result);

// How the call ended.
//
// # Safety
// `result` is null or a result that was not freed.
kvtier_code kvtier_result_code(const struct kvtier_result *result);

// Why it failed: one sentence in UTF-8, empty when it was done. Good until the result is freed.
//
// # Safety
// `result` is null or a result that was not freed.
const char *kvtier_result_message(const struct kvtier_result *result);

// Of a lookup, load or acquire: blocks of the longest run that was there. Of a prefetch: those that are in memory or on their way. Of a store,
// reserve or commit: blocks that it was about.
//
// # Safety
// `result` is null or a result that was not freed.
size_t kvtier_result_count(const struct kvtier_result *result);

// Of a lookup, load or acquire: where a block of the run was found.
//
// # Safety
// `result` is null or a result that was not freed.
kvtier_tier kvtier_result_tier(const struct kvtier_result *result, size_t block);

// Of a lookup, load or acquire: why the next block is not there, a miss reason of docs/protocol.md; 0 when all are.
//
// # Safety
// `result` is null or a result that was not freed.
uint32_t kvtier_result_miss(const struct kvtier_result *result);

// Of a store or commit: what became of a block. Of a reserve: how its place stood then.
//
// # Safety
// `result` is null or a result that was not freed.
kvtier_outcome kvtier_result_outcome(const struct kvtier_result *result, size_t block);

// Of stats: the daemon's statistics, of explain: what it tells of the request, as JSON in UTF-8; else empty. Good until the result is freed.
//
// # Safety
// `result` is null or a result that was not freed.
const char *kvtier_result_text(const struct kvtier_result *result);

// Of an acquire: its leases, once; null then and else. They are the caller's, who frees them with `kvtier_leases_release`.
//
// # Safety
// `result` is null or a result that was not freed, and nobody else uses it meanwhile.
struct kvtier_leases *kvtier_result_take_leases(struct kvtier_result *result);

// Of a reserve: its places, once; null then and else. They are the caller's, who frees them with `kvtier_places_free`.
//
// # Safety
// `result` is null or a result that was not freed, and nobody else uses it meanwhile.
struct kvtier_places *kvtier_result_take_places(struct kvtier_result *result);

// Frees a result, with what was not taken of it. Null is nothing.
//
// # Safety
// `result` is null or a result that was not freed; it is not used any more.
void kvtier_result_free(struct kvtier_result *result);

// Describes an engine's memory: `layers` slabs, each at its address and of its length. A stored block's layer is `layer_bytes /
// block_bytes` engine blocks, one after the
// other. `stride` 0 is `block_bytes`.
//
// # Safety
// `addresses` and `bytes` have `layers` entries; the memory is readable, and writable if `is_writable`, until every call that
// uses the slabs has ended, and nobody else writes what a call reads,
// or touches what it writes, meanwhile. `out` may be written.
kvtier_code kvtier_slabs_new(void *const *addresses,
                             const uint64_t *bytes,
                             size_t layers,
                             uint64_t block_bytes,
                             uint64_t stride,
                             bool is_writable,
                             struct kvtier_slabs **out);

// Frees the description. Calls that were submitted with it go on using the memory until they have ended. Null is nothing.
//
// # Safety
// `slabs` is null or was not freed; it is not used any more.
void kvtier_slabs_free(struct kvtier_slabs *slabs);

// Asks where the longest run of blocks is. Touches nothing.
//
// # Safety
// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
kvtier_code kvtier_submit_lookup(const struct kvtier_client *client, const struct kvtier_run *run, uint64_t *op);

// Has the daemon bring the longest run of blocks into its memory, without waiting for it: the result's count is of those that are there or on their
// way.
//
// # Safety
// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
kvtier_code kvtier_submit_prefetch(const struct kvtier_client *client,
                                   const struct kvtier_run *run,
                                   uint64_t *op);

// Leases the longest run of blocks, to be read in place. Waits for what has to come from the disk, as far as the deadline allows.
//
// # Safety
// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
kvtier_code kvtier_submit_acquire(const struct kvtier_client *client,
                                  const struct kvtier_run *run,
                                  uint64_t *op);

// Reserves places for blocks, at most 1,024, to be written in place. Those that the daemon has no memory for at once are `KVTIER_FULL`.
//
// # Safety
// `client` was not closed; `run` has the size that it says, and its hashes; `op` may be written.
kvtier_code kvtier_submit_reserve(const struct kvtier_client *client,
                                  const struct kvtier_run *run,
                                  uint64_t *op);

// Hands all places over that are reserved, each of them filled. From now on nothing is written there. The places are freed as
// ever, at any time.
//
// # Safety
// `client` was not closed, and the places are its own and were not freed; `op` may be written.
kvtier_code kvtier_submit_commit(const struct kvtier_client *client,
                                 const struct kvtier_places *places,
                                 uint64_t *op);

// Copies the longest run of blocks into slabs. `blocks`: for each stored block the numbers of the engine's blocks that it fills,
// one after the other, or `KVTIER_SKIP`. Of a block
// beyond the run parts may have been written: it counts as failed.
//
// # Safety
// `client` was not closed; `run` has the size that it says, and its hashes; the slabs were not freed; `blocks` has `block_count`
// entries; `op` may be written.
kvtier_code kvtier_submit_load(const struct kvtier_client *client,
                               const struct kvtier_run *run,
                               const struct kvtier_slabs *slabs,
                               const uint32_t *blocks,
                               size_t block_count,
                               uint64_t *op);

// Copies blocks from slabs to the daemon; `blocks` as for a load, without `KVTIER_SKIP`. Done when the daemon has verified its copies.
//
// # Safety
// As for `kvtier_submit_load`.
kvtier_code kvtier_submit_store(const struct kvtier_client *client,
                                const struct kvtier_run *run,
                                const struct kvtier_slabs *slabs,
                                const uint32_t *blocks,
                                size_t block_count,
                                uint64_t *op);

// Asks for the daemon's statistics.
//
// # Safety
// `client` was not closed; `op` may be written.
kvtier_code kvtier_submit_stats(const struct kvtier_client *client, uint64_t *op);

// Asks why the blocks of a request, named in the runs of its calls, were there or not.
//
// # Safety
// `client` was not closed; `request` is a C string; `op` may be written.
kvtier_code kvtier_submit_explain(const struct kvtier_client *client, const char *request, uint64_t *op);

// Gets ready to store: the daemon makes room for blocks of this shape, and the memory through which they go is committed. The first stores do it
// otherwise, and take longer.
//
// # Safety
// `client` was not closed; `op` may be written.
kvtier_code kvtier_submit_prepare(const struct kvtier_client *client,
                                  uint64_t *op);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KVTIER_H */
