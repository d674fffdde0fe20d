// Small products of many adapters at once: each group of rows meets its own factor. In f32 sums.
//
// A block computes a tile [ROWS, COLUMNS] of a product a·b, whose factors lie in memory with either of
// their dimensions contiguous; the inner dimension is walked DEPTH values at a time.
#pragma once

#include "tensor_core.cuh"

namespace grouped {

constexpr unsigned WARPS = 4;
constexpr unsigned ROWS = 16 * WARPS;
constexpr unsigned COLUMNS = 64;
constexpr unsigned DEPTH = 32;

// A factor of `outer` rows, or columns, of inner values: value k of row r lies at
// r·outer_step + k·inner_step, one of which is 1.
template <class T>
struct Factor {
    const T *start;
    unsigned outer, outer_step, inner_step;
};

// Copies the values `first..first + DEPTH` of rows `row..row + COUNT` into a tile of such rows; zero
// where the factor has none. A thread moves N neighbours at once.
template <class T, unsigned N, unsigned COUNT>
__device__ __forceinline__ void fetch(T *tile, const Factor<T> &factor, unsigned row, unsigned first,
                                      unsigned end) {
    constexpr unsigned STRIDE = PADDED<T, DEPTH>;
    bool along = factor.inner_step == 1;
    unsigned across = along ? DEPTH / N : COUNT / N;
    for (unsigned i = threadIdx.x; i < COUNT * DEPTH / N; i += blockDim.x) {
        unsigned r = along ? i / across : i % across * N;
        unsigned k = along ? i % across * N : i / across;
        unsigned long long at = (unsigned long long)(row + r) * factor.outer_step +
                                (unsigned long long)(first + k) * factor.inner_step;
        // Neighbours all exist or none does: what they run along is whole packs.
        Pack<T, N> values = {};
        if (row + r < factor.outer && first + k < end) values = Pack<T, N>::load(factor.start + at);
        if (along) {
            values.store(tile + r * STRIDE + k);
            continue;
        }
#pragma unroll
        for (unsigned j = 0; j < N; j++) tile[(r + j) * STRIDE + k] = values.at[j];
    }
}

// The warp's sums of the block's tile: rows of the warp, by eights of columns.
typedef float Sums[COLUMNS / 8][4];

// Adds the products of inner values `first..end`, fetched N at a time.
template <class T, unsigned N>
__device__ __forceinline__ void add_products(Sums &sums, T *left, T *right, const Factor<T> &a,
                                             const Factor<T> &b, unsigned row, unsigned column,
                                             unsigned first, unsigned end) {
    constexpr unsigned STRIDE = PADDED<T, DEPTH>;
    const T *own = left + threadIdx.x / WARP * 16 * STRIDE;
    for (unsigned k = first; k < end; k += DEPTH) {
        fetch<T, N, ROWS>(left, a, row, k, end);
        fetch<T, N, COLUMNS>(right, b, column, k, end);
        __syncthreads();
#pragma unroll
        for (unsigned depth = 0; depth < DEPTH; depth += 16) {
            Left<T> rows;
            load_left<STRIDE>(rows, own + depth);
#pragma unroll
            for (unsigned n = 0; n < COLUMNS / 16; n++) {
                // The same for all threads: columns that do not exist are not multiplied.
                if (column + n * 16 >= b.outer) break;
                Right<T> columns[2];
                load_right_rows<STRIDE>(columns, right + n * 16 * STRIDE + depth);
                multiply<T>(sums[2 * n], rows, columns[0]);
                multiply<T>(sums[2 * n + 1], rows, columns[1]);
            }
        }
        __syncthreads();
    }
}

// Whether a factor can be fetched a pack at a time: its rows, or what lies across them, start at packs
// and are whole packs.
template <class T>
__device__ __forceinline__ bool packed(const Factor<T> &factor) {
    if (factor.inner_step == 1) return packable(factor.start, factor.outer_step);
    return packable(factor.start, factor.inner_step) && factor.outer % PACK<T> == 0;
}

// The block's tile of a·b, from row `row` of a and column `column` of b; `first` is a multiple of DEPTH
// where inner values are contiguous.
template <class T>
__device__ __forceinline__ void product(Sums &sums, const Factor<T> &a, const Factor<T> &b,
                                        unsigned row, unsigned column, unsigned first,
                                        unsigned end) {
    constexpr unsigned STRIDE = PADDED<T, DEPTH>;
    __shared__ __align__(16) T left[ROWS * STRIDE];
    __shared__ __align__(16) T right[COLUMNS * STRIDE];
    if (packed(a) && packed(b)) {
        add_products<T, PACK<T>>(sums, left, right, a, b, row, column, first, end);
    } else {
        add_products<T, 1>(sums, left, right, a, b, row, column, first, end);
    }
}

// Writes the tile, times `scale`, to where it belongs in a matrix `width` wide, or adds it.
template <class T>
__device__ __forceinline__ void put(T *to, const Sums &sums, unsigned row, unsigned rows,
                                    unsigned column, unsigned width, float scale, bool accumulate) {
    unsigned lane = threadIdx.x % WARP;
    row += threadIdx.x / WARP * 16 + lane / 4;
    column += lane % 4 * 2;
#pragma unroll
    for (unsigned n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            unsigned r = row + i / 2 * 8, c = column + n * 8 + i % 2;
            if (r >= rows || c >= width) continue;
            unsigned long long at = (unsigned long long)r * width + c;
            float value = scale * sums[n][i];
            to[at] = narrow<T>(accumulate ? widen(to[at]) + value : value);
        }
    }
}

template <class T>
__device__ void adapt(const T *x, const T *factors, T *y, const unsigned *tiles, unsigned inner,
                      unsigned outer, unsigned transposed, float scale, unsigned accumulate) {
    const unsigned *tile = tiles + 3 * blockIdx.x;
    unsigned group = tile[0], row = tile[1], end = tile[2], column = blockIdx.y * COLUMNS;
    Factor<T> a = {x, end, inner, 1};
    const T *own = factors + (unsigned long long)group * inner * outer;
    Factor<T> b = {own, outer, transposed ? inner : 1, transposed ? 1 : outer};
    Sums sums = {};
    product(sums, a, b, row, column, 0, inner);
    put(y, sums, row, end, column, outer, scale, accumulate != 0);
}

template <class T>
__device__ void gradient(const T *dy, const T *x, float *to, const unsigned *chunks, unsigned outer,
                         unsigned inner, float scale) {
    unsigned first = chunks[2 * blockIdx.z], end = chunks[2 * blockIdx.z + 1];
    unsigned row = blockIdx.x * ROWS, column = blockIdx.y * COLUMNS;
    Factor<T> a = {dy, outer, 1, outer}, b = {x, inner, 1, inner};
    Sums sums = {};
    product(sums, a, b, row, column, first, end);
    to += (unsigned long long)blockIdx.z * outer * inner;
    put(to, sums, row, outer, column, inner, scale, false);
}

}  // namespace grouped

// Sums the gradients of a group's chunks, in their order: those from ends[g − 1], or the first, to
// ends[g]. One row of blocks for each group.
extern "C" __global__ void sum_chunks_f32(const float *parts, const unsigned *ends, float *to,
                                          unsigned count) {
    unsigned group = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = 0.0f;
    for (unsigned chunk = group ? ends[group - 1] : 0; chunk < ends[group]; chunk++) {
        sum += parts[(unsigned long long)chunk * count + i];
    }
    to[(unsigned long long)group * count + i] = sum;
}

// `tiles` has three numbers for each row of blocks: a group, its first row there, and the group's end.
#define KERNELS(T, NAME)                                                                            \
    extern "C" __global__ void adapt_##NAME(const T *x, const T *factors, T *y,                     \
                                            const unsigned *tiles, unsigned inner, unsigned outer,  \
                                            unsigned transposed, float scale,                       \
                                            unsigned accumulate) {                                  \
        grouped::adapt(x, factors, y, tiles, inner, outer, transposed, scale, accumulate);          \
    }                                                                                               \
    extern "C" __global__ void adapt_gradient_##NAME(const T *dy, const T *x, float *to,            \
                                                     const unsigned *chunks, unsigned outer,        \
                                                     unsigned inner, float scale) {                 \
        grouped::gradient(dy, x, to, chunks, outer, inner, scale);                                  \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

#undef KERNELS
