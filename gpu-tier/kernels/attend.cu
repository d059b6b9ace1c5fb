// Paged attention over mixed forms: (m, l, o) of spans of 64 positions, for the rows of several sequences at one layer.
//
// What is computed, operation by operation, is gpu-tier/src/attention.rs and attention/closed.rs; so the bits are those of the cpu
// device. A thread block of 64 threads takes one KV head, a tile of query vectors and one span (partials), or all spans in order
// (a running state). kvtier_attend_vV_cC: tiles of V vectors, heads of up to 64 C channels (a multiple of 16).
#include "attend_closed.cuh"
#include "attend_exact.cuh"

struct Plain {
    template <class Tile>
    static __device__ __forceinline__ void exact(Tile& tile, const SpanPlace& span) {
        attend_exact(tile, span);
    }
    template <class Tile>
    static __device__ __forceinline__ void closed(Tile& tile, const SpanPlace& span) {
        attend_closed(tile, span);
    }
};

#define KV_ATTEND(v, c)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) kvtier_attend_v##v##_c##c(KV_ATTEND_PARAMETERS) { \
        typedef PlainShared<v, c> Shared;                                                                          \
        KV_SHARED(Shared, shared);                                                                                 \
        const AttendShape shape = KV_ATTEND_SHAPE;                                                                 \
        attend<v, c, Plain>(shared, shape, jobs, spans, count);                                                    \
    }                                                                                                              \
    KV_EXPORT(kvtier_attend_v##v##_c##c)

KV_ATTEND(4, 1);
KV_ATTEND(4, 2);
KV_ATTEND(4, 4);
KV_ATTEND(8, 1);
KV_ATTEND(8, 2);
KV_ATTEND(8, 4);
