// Runs kernels of the host build: a block at a time, its threads as fibers on one stack each.
//
// Compiled without a sanitizer. Under ThreadSanitizer (KV_TSAN) each fiber is a thread of its own to it; barriers are told as
// release and acquire, switches and shuffles as nothing.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <string>
#include <vector>

#include "cuda_host.h"

#ifdef KV_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

// rdi: where to keep the old stack pointer, rsi: the new one.
asm(".text\n.globl shim_switch\nshim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
extern "C" void shim_switch(void** from, void* to);

namespace {

const size_t STACK = 64 << 10;
const size_t SHARED = 48 << 10;
// Behind a block's shared memory: a byte for its barrier and one for each of its warps, to name them to the sanitizer.
const size_t TOKENS = 64;

struct Kernel {
    void (*run)(void**);
    std::vector<size_t> sizes;
};

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

enum State { READY, AT_BARRIER, AT_LANES, DONE };

// A copy that was started and has not happened yet.
struct Copy {
    void* to;
    const void* from;
    // Groups that were ended before it was started.
    unsigned group;
};

// Copies that a thread may have under way.
const unsigned COPIES = 512;

struct Fiber {
    ShimThread seen;
    // Copies `first`..`last`, each at its number modulo COPIES; no allocation, which a sanitizer would take for a thread's own.
    Copy copies[COPIES];
    unsigned first, last, groups;
    void* sp;
    State state;
    unsigned line, mask;
    ShimWords given;
    void* tsan;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<ShimWords> taken;
    char* stacks = nullptr;
    size_t stack_count = 0;
    void* scheduler = nullptr;
    void* scheduler_tsan = nullptr;
    Fiber* now = nullptr;
    void (*run)(void**) = nullptr;
    void** parameters = nullptr;
    std::string problem;
    char* tokens = nullptr;
};

thread_local Block block;
thread_local sigjmp_buf* escape = nullptr;

void to_scheduler() {
#ifdef KV_TSAN
    __tsan_switch_to_fiber(block.scheduler_tsan, 1);
#endif
    shim_switch(&block.now->sp, block.scheduler);
}

void entry() {
    block.run(block.parameters);
    block.now->state = DONE;
#ifdef KV_TSAN
    __tsan_release(block.tokens);
#endif
    to_scheduler();
    abort();
}

void* fresh_stack(size_t i) {
    void** top = reinterpret_cast<void**>(block.stacks + (i + 1) * STACK);
    *--top = nullptr;  // so that `entry` starts with the alignment of a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}

struct Random {
    unsigned long long state;
    unsigned below(unsigned n) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<unsigned>((state * 0x2545f4914f6cdd1dull) >> 33) % n;
    }
};

void order(std::vector<unsigned>& all, unsigned schedule, Random& random) {
    for (unsigned i = 0; i < all.size(); i++) all[i] = schedule == 1 ? all.size() - 1 - i : i;
    if (schedule == 2)
        for (unsigned i = all.size(); i > 1; i--) std::swap(all[i - 1], all[random.below(i)]);
}

bool release_barrier() {
    unsigned line = 0;
    for (Fiber& f : block.fibers) {
        if (f.state == DONE) continue;
        if (f.state != AT_BARRIER) return false;
        if (line && f.line != line) {
            block.problem = "threads wait at different barriers: lines " + std::to_string(line) + " and " + std::to_string(f.line);
            return false;
        }
        line = f.line;
    }
    for (Fiber& f : block.fibers)
        if (f.state == AT_BARRIER) f.state = READY;
    return line != 0;
}

bool release_lanes(size_t warp) {
    size_t first = warp * 32, end = std::min(first + 32, block.fibers.size());
    bool any = false;
    for (size_t i = first; i < end; i++) {
        Fiber& f = block.fibers[i];
        if (f.state != AT_LANES) continue;
        bool all = true;
        for (size_t lane = 0; lane < 32; lane++) {
            if (!(f.mask >> lane & 1)) continue;
            const Fiber* other = first + lane < end ? &block.fibers[first + lane] : nullptr;
            all = all && other && other->state == AT_LANES && other->line == f.line && other->mask == f.mask;
        }
        if (!all) continue;
        unsigned mask = f.mask;
        for (size_t lane = 0; lane < 32 && first + lane < end; lane++)
            if (mask >> lane & 1) {
                block.taken[first + lane] = block.fibers[first + lane].given;
                block.fibers[first + lane].state = READY;
            }
        any = true;
    }
    return any;
}

void run_fiber(Fiber& fiber) {
    block.now = &fiber;
#ifdef KV_TSAN
    __tsan_switch_to_fiber(fiber.tsan, 1);
#endif
    shim_switch(&block.scheduler, fiber.sp);
    block.now = nullptr;
}

// One block; false when it failed.
bool run_block(unsigned threads, unsigned schedule, Random& random) {
    std::vector<unsigned> turn(threads);
    for (;;) {
        bool ran = false, live = false;
        order(turn, schedule, random);
        for (unsigned i : turn) {
            Fiber& fiber = block.fibers[i];
            if (fiber.state != READY) continue;
            run_fiber(fiber);
            ran = true;
            if (!block.problem.empty()) return false;
            if (schedule == 2) release_lanes(i / 32);
        }
        for (size_t warp = 0; warp * 32 < threads; warp++) ran = release_lanes(warp) || ran;
        ran = release_barrier() || ran;
        if (!block.problem.empty()) return false;
        for (Fiber& f : block.fibers) live = live || f.state != DONE;
        if (!live) return true;
        if (!ran) {
            for (Fiber& f : block.fibers)
                if (f.state == AT_BARRIER || f.state == AT_LANES)
                    block.problem += "thread " + std::to_string(f.seen.thread.x) + " waits at line " + std::to_string(f.line) + "; ";
            block.problem = "deadlock: " + block.problem;
            return false;
        }
    }
}

void on_fault(int, siginfo_t* info, void*) {
    if (escape && block.now) {
        const ShimIndex& b = block.now->seen.block;
        char text[160];
        snprintf(text, sizeof text, "illegal address %p, block [%u,%u,%u] thread %u", info->si_addr, b.x, b.y, b.z,
                 block.now->seen.thread.x);
        block.problem = text;
        siglongjmp(*escape, 1);
    }
    signal(SIGSEGV, SIG_DFL);
}

char* new_stacks(unsigned threads) {
    void* memory = mmap(nullptr, threads * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    return static_cast<char*>(memory);
}

char* fresh_shared() {
    void* memory = aligned_alloc(128, (SHARED + TOKENS + 127) / 128 * 128);
    if (!memory) abort();
    return static_cast<char*>(memset(memory, 0xff, SHARED));
}

void prepare(unsigned threads) {
    if (block.stack_count < threads) {
        if (block.stacks) munmap(block.stacks, block.stack_count * STACK);
        block.stacks = new_stacks(threads);
        block.stack_count = threads;
    }
    block.fibers.resize(threads);
    block.taken.assign((threads + 31) / 32 * 32, {});
}

void start_block(ShimIndex at, ShimIndex grid, ShimIndex dim, unsigned threads, char* shared) {
    block.tokens = shared + SHARED;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& f = block.fibers[i];
        f.seen.thread = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
        f.seen.block = at;
        f.seen.block_dim = dim;
        f.seen.grid_dim = grid;
        f.seen.shared = shared;
        f.first = f.last = f.groups = 0;
        f.state = READY;
        f.sp = fresh_stack(i);
    }
}

// Like run_block; an illegal access ends it too. A function of its own: what it would have to keep across the jump is little.
__attribute__((noinline)) bool run_guarded(unsigned threads, unsigned schedule, Random& random) {
    sigjmp_buf here;
    escape = &here;
    volatile bool good = false;
    if (sigsetjmp(here, 1) == 0) good = run_block(threads, schedule, random);
    escape = nullptr;
    block.now = nullptr;
    return good;
}

}  // namespace

extern "C" {

ShimThread* shim_thread() { return &block.now->seen; }

void shim_register(const char* name, void (*run)(void**), const size_t* sizes, size_t parameters) {
    kernels()[name] = {run, std::vector<size_t>(sizes, sizes + parameters)};
}

void shim_start_copy(void* to, const void* from) {
    Fiber* f = block.now;
    if (f->last - f->first == COPIES) shim_fail("more asynchronous copies than the host build keeps", 0);
    f->copies[f->last++ % COPIES] = {to, from, f->groups};
}

void shim_end_group() { block.now->groups++; }

int shim_take_copy(unsigned pending, void** to, const void** from) {
    Fiber* f = block.now;
    // Of `groups` ended groups the last `pending` may be under way, and so may what is in no group yet.
    const Copy& oldest = f->copies[f->first % COPIES];
    if (f->first == f->last || oldest.group + pending >= f->groups) return 0;
    *to = oldest.to;
    *from = oldest.from;
    f->first++;
    return 1;
}

void shim_fail(const char* problem, unsigned line) {
    block.problem = std::string(problem) + ", line " + std::to_string(line);
    to_scheduler();
    abort();
}

void shim_syncthreads(unsigned line) {
    Fiber* f = block.now;
    f->state = AT_BARRIER;
    f->line = line;
#ifdef KV_TSAN
    __tsan_release(block.tokens);
#endif
    to_scheduler();
#ifdef KV_TSAN
    __tsan_acquire(block.tokens);
#endif
}

const ShimWords* shim_share(unsigned line, unsigned mask, const ShimWords& words) {
    Fiber* f = block.now;
    size_t self = f - block.fibers.data();
    f->state = AT_LANES;
    f->line = line;
    f->mask = mask;
    f->given = words;
    to_scheduler();
    return &block.taken[self / 32 * 32];
}

void shim_syncwarp(unsigned line) {
#ifdef KV_TSAN
    char* token = block.tokens + 1 + (block.now - block.fibers.data()) / 32;
    __tsan_release(token);
#endif
    shim_share(line, 0xffffffffu, {});
#ifdef KV_TSAN
    __tsan_acquire(token);
#endif
}

// Number of parameters of a kernel and the size of each (at most 16); -1 when there is none of that name.
int shim_parameters(const char* name, size_t* sizes) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return -1;
    for (size_t i = 0; i < found->second.sizes.size() && i < 16; i++) sizes[i] = found->second.sizes[i];
    return static_cast<int>(found->second.sizes.size());
}

// Runs a grid. schedule: 0 threads and blocks in order, 1 in reverse, 2 in an order drawn from the seed at each turn.
// Returns 0, or -1 and what went wrong in `problem`.
int shim_launch(const char* name, const unsigned* grid, const unsigned* dim, void** parameters, unsigned schedule,
                unsigned long long seed, char* problem, size_t problem_bytes) {
    auto found = kernels().find(name);
    if (found == kernels().end()) {
        snprintf(problem, problem_bytes, "there is no kernel %s", name);
        return -1;
    }
    static struct sigaction before = {};
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    if (!before.sa_sigaction) sigaction(SIGSEGV, &action, &before);
    unsigned threads = dim[0] * dim[1] * dim[2];
    Random random = {seed | 1};
    block.run = found->second.run;
    block.parameters = parameters;
    block.problem.clear();
    prepare(threads);
    std::vector<unsigned> turn(grid[0] * grid[1] * grid[2]);
    order(turn, schedule, random);
    std::vector<char*> memories, retired;
#ifdef KV_TSAN
    // All of them now, and their memory before them: what is created is ordered after its creator's past, and blocks must stay
    // unordered among each other.
    for (size_t i = 0; i < turn.size(); i++) memories.push_back(fresh_shared());
    block.scheduler_tsan = __tsan_get_current_fiber();
    std::vector<void*> created(turn.size() * threads);
    for (void*& fiber : created) fiber = __tsan_create_fiber(0);
#endif
    bool good = true;
    for (unsigned i : turn) {
        ShimIndex at = {i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]};
#ifdef KV_TSAN
        char* shared = memories[i];
        // Stacks of unordered blocks are different memory too. The last ones stay for the next launch.
        if (i != turn[0]) {
            retired.push_back(block.stacks);
            block.stacks = new_stacks(block.stack_count);
        }
#else
        char* shared = fresh_shared();
        memories.push_back(shared);
#endif
        start_block(at, {grid[0], grid[1], grid[2]}, {dim[0], dim[1], dim[2]}, threads, shared);
#ifdef KV_TSAN
        for (unsigned t = 0; t < threads; t++) block.fibers[t].tsan = created[i * threads + t];
#endif
        good = run_guarded(threads, schedule, random);
        if (!good) {
            snprintf(problem, problem_bytes, "%s: %s (block [%u,%u,%u])", name, block.problem.c_str(), at.x, at.y, at.z);
            break;
        }
#ifndef KV_TSAN
        free(memories.back());
        memories.pop_back();
#endif
    }
#ifdef KV_TSAN
    for (char* memory : memories) __tsan_acquire(memory + SHARED);
    for (void* fiber : created) __tsan_destroy_fiber(fiber);
    for (char* stacks : retired) munmap(stacks, block.stack_count * STACK);
#endif
    for (char* memory : memories) free(memory);
    return good ? 0 : -1;
}
}
