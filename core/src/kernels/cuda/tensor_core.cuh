// Products of small tiles by the tensor cores of a warp, for both types of values.
//
// bf16 values multiply as they are. Each f32 value is split into three of bf16 whose sum is exact to
// its last bits, and six of the nine products are summed: what the others would add is below f32's
// rounding. Sums are f32.
//
// Layouts are those of mma.m16n8k16: of a tile of sums [16, 8], a lane has rows lane/4 and lane/4 + 8,
// columns 2·(lane % 4) and the next.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__
// sum += a·b
__device__ __forceinline__ void mma(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 by 8 values from shared memory; lane 8·i + r names row r of matrix i.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const bf16 *row, bool transposed) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    }
}
#else
#include "tensor_core.hpp"
#endif

// How many bf16 values stand for one value.
template <class T>
constexpr unsigned PARTS = 1;
template <>
constexpr unsigned PARTS<float> = 3;

// Values between rows of a tile in shared memory whose rows hold WIDTH values: 16 bytes more, so that
// neighbouring rows lie in different banks.
template <class T, unsigned WIDTH>
constexpr unsigned PADDED = WIDTH + PACK<T>;

// A lane's values of a factor [16 rows, 16] and of a factor [16, 8 columns].
template <class T>
struct Left {
    unsigned part[PARTS<T>][4];
};
template <class T>
struct Right {
    unsigned part[PARTS<T>][2];
};

__device__ __forceinline__ unsigned pair_bits(bf16 low, bf16 high) {
    return (unsigned)__bfloat16_as_ushort(low) | (unsigned)__bfloat16_as_ushort(high) << 16;
}

// Two neighbouring values as register `at` of each part.
template <class T, unsigned N>
__device__ __forceinline__ void split(unsigned (&part)[PARTS<T>][N], unsigned at, float low, float high) {
#pragma unroll
    for (unsigned p = 0; p < PARTS<T>; p++) {
        bf16 a = narrow<bf16>(low), b = narrow<bf16>(high);
        part[p][at] = pair_bits(a, b);
        low -= widen(a);
        high -= widen(b);
    }
}

// sum += a·b; the smallest products first.
template <class T>
__device__ __forceinline__ void multiply(float (&sum)[4], const Left<T> &a, const Right<T> &b) {
#pragma unroll
    for (unsigned order = PARTS<T>; order-- > 0;) {
#pragma unroll
        for (unsigned p = 0; p <= order; p++) mma(sum, a.part[p], b.part[order - p]);
    }
}

// Rows 0..16 and columns 0..16 from `tile`, rows STRIDE apart.
template <unsigned STRIDE>
__device__ __forceinline__ void load_left(Left<bf16> &a, const bf16 *tile) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices(a.part[0], tile + lane % 16 * STRIDE + lane / 16 * 8, false);
}
template <unsigned STRIDE>
__device__ __forceinline__ void load_left(Left<float> &a, const float *tile) {
    unsigned row = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const float *at = tile + (row + i % 2 * 8) * STRIDE + column + i / 2 * 8;
        split<float>(a.part, i, at[0], at[1]);
    }
}

// Columns 0..8 and 8..16 of a factor [16, 16] whose columns are rows of `tile`.
template <unsigned STRIDE>
__device__ __forceinline__ void load_right_rows(Right<bf16> (&b)[2], const bf16 *tile) {
    unsigned lane = threadIdx.x % WARP, all[4];
    load_matrices(all, tile + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8, false);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) b[i / 2].part[0][i % 2] = all[i];
}
template <unsigned STRIDE>
__device__ __forceinline__ void load_right_rows(Right<float> (&b)[2], const float *tile) {
    unsigned column = threadIdx.x % WARP / 4, row = threadIdx.x % 4 * 2;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const float *at = tile + (column + i / 2 * 8) * STRIDE + row + i % 2 * 8;
        split<float>(b[i / 2].part, i % 2, at[0], at[1]);
    }
}

// The same of a factor whose rows are rows of `tile`.
template <unsigned STRIDE>
__device__ __forceinline__ void load_right_columns(Right<bf16> (&b)[2], const bf16 *tile) {
    unsigned lane = threadIdx.x % WARP, all[4];
    load_matrices(all, tile + lane % 16 * STRIDE + lane / 16 * 8, true);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) b[i / 2].part[0][i % 2] = all[i];
}
template <unsigned STRIDE>
__device__ __forceinline__ void load_right_columns(Right<float> (&b)[2], const float *tile) {
    unsigned column = threadIdx.x % WARP / 4, row = threadIdx.x % 4 * 2;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const float *at = tile + (row + i % 2 * 8) * STRIDE + column + i / 2 * 8;
        split<float>(b[i / 2].part, i % 2, at[0], at[STRIDE]);
    }
}

// Two neighbouring tiles of sums [16, 8] as the factor [16, 16] of the next product.
template <class T>
__device__ __forceinline__ Left<T> as_left(const float (&first)[4], const float (&second)[4]) {
    Left<T> a;
    split<T>(a.part, 0, first[0], first[1]);
    split<T>(a.part, 1, first[2], first[3]);
    split<T>(a.part, 2, second[0], second[1]);
    split<T>(a.part, 3, second[2], second[3]);
    return a;
}
