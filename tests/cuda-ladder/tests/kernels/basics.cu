// Kernels of the ladder's own tests, compiled by nvcc; their PTX is checked in beside them.

extern __shared__ __align__(16) unsigned char dynamic_shared[];

// z = a * x + y over `count` floats.
extern "C" __global__ void axpy(const float* x, const float* y, float* z, float a, unsigned count) {
    unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) z[index] = fmaf(a, x[index], y[index]);
}

// Row-wise softmax, a block a row; `columns` at most 1024, a thread each 128.
extern "C" __global__ void softmax(const float* in, float* out, unsigned columns) {
    __shared__ float partial[4];
    const float* row = in + static_cast<size_t>(blockIdx.x) * columns;
    float most = __int_as_float(0xff800000);
    for (unsigned column = threadIdx.x; column < columns; column += blockDim.x) most = fmaxf(most, row[column]);
    for (int lane = 16; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lane));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = most;
    __syncthreads();
    most = fmaxf(fmaxf(partial[0], partial[1]), fmaxf(partial[2], partial[3]));
    float sum = 0.0f;
    for (unsigned column = threadIdx.x; column < columns; column += blockDim.x) sum += exp2f((row[column] - most) * 1.4426950408889634f);
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = partial[0] + partial[1] + partial[2] + partial[3];
    for (unsigned column = threadIdx.x; column < columns; column += blockDim.x)
        out[static_cast<size_t>(blockIdx.x) * columns + column] = exp2f((row[column] - most) * 1.4426950408889634f) / sum;
}

// Reverses 128 words of each block through shared memory, filled by cp.async.
extern "C" __global__ void reverse(const unsigned* in, unsigned* out) {
    unsigned* stage = reinterpret_cast<unsigned*>(dynamic_shared);
    const unsigned* from = in + blockIdx.x * 128;
    if (threadIdx.x < 32) {
        unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(stage + threadIdx.x * 4));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(from + threadIdx.x * 4) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
#ifndef NO_WAIT
        asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
    }
#ifndef NO_BARRIER
    __syncthreads();
#endif
    out[blockIdx.x * 128 + threadIdx.x] = stage[127 - threadIdx.x];
}

// One 16 x 8 tile of D = A B with bf16 inputs: A is 16 x 16 row-major, B is 16 x 8 column-major.
extern "C" __global__ void tile(const unsigned short* a, const unsigned short* b, float* d) {
    __shared__ __align__(16) unsigned short stage[16 * 16];
    for (unsigned index = threadIdx.x; index < 256; index += 32) stage[index] = a[index];
    __syncwarp();
    unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(stage + threadIdx.x % 16 * 16 + threadIdx.x / 16 * 8));
    unsigned a0, a1, a2, a3;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a0), "=r"(a1), "=r"(a2), "=r"(a3) : "r"(row) : "memory");
    const unsigned* column = reinterpret_cast<const unsigned*>(b + threadIdx.x / 4 * 16 + threadIdx.x % 4 * 2);
    float d0, d1, d2, d3;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=f"(d0), "=f"(d1), "=f"(d2), "=f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(column[0]), "r"(column[4]), "f"(0.0f));
    float* out = d + threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
    out[0] = d0;
    out[1] = d1;
    out[64] = d2;
    out[65] = d3;
}

__device__ unsigned counter = 3;
__constant__ unsigned weights[4] = {1, 10, 100, 1000};

__device__ __noinline__ unsigned weigh(const unsigned* values, unsigned count) {
    unsigned sum = 0;
    for (unsigned index = 0; index < count; ++index) sum += values[index] * weights[index % 4];
    return sum;
}

// Local arrays, a called function, constants, a module variable, atomics.
extern "C" __global__ void odds(const unsigned* in, unsigned* out, unsigned count) {
    unsigned values[8];
    for (unsigned index = 0; index < 8; ++index) values[index] = in[(threadIdx.x + index) % count];
    unsigned result = weigh(values, in[0] % 8 + 1);
    atomicAdd(&counter, 1);
    atomicMax(out, result);
    out[1 + threadIdx.x] = result;
    __syncthreads();
    if (threadIdx.x == 0) out[1 + blockDim.x] = counter;
}
