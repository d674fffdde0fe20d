// RMSNorm: y = s·x·gain with s = 1/√(mean(x²) + eps), row by row, in f32 sums.
//
// A row is that of a warp, or of the whole block where `lanes` is its size. The gradient is
// dx = s·g − x·s³/n·Σ(g·x) with g = dy·gain.
#pragma once

#include "common.cuh"

struct Row {
    unsigned long long start;
    unsigned lane;
    bool exists;
};

// The thread's row. Only whole warps have none, and only where a row is that of a warp.
__device__ __forceinline__ Row own_row(unsigned rows, unsigned width, unsigned lanes) {
    unsigned row = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    return {(unsigned long long)row * width, threadIdx.x % lanes, row < rows};
}

template <class T, unsigned N>
__device__ __forceinline__ float inverse_rms(const T *x, unsigned width, float eps, unsigned lane,
                                             unsigned lanes) {
    float squares = 0.0f;
    for (unsigned i = lane * N; i < width; i += lanes * N) {
        Pack<T, N> values = Pack<T, N>::load(x + i);
#pragma unroll
        for (unsigned j = 0; j < N; j++) squares += widen(values.at[j]) * widen(values.at[j]);
    }
    return 1.0f / sqrtf(row_sum(squares, lanes) / width + eps);
}

template <class T, unsigned N>
__device__ void norm_row(const T *x, const T *gain, T *y, unsigned width, float eps, unsigned lane,
                         unsigned lanes) {
    float scale = inverse_rms<T, N>(x, width, eps, lane, lanes);
    for (unsigned i = lane * N; i < width; i += lanes * N) {
        Pack<T, N> values = Pack<T, N>::load(x + i), gains = Pack<T, N>::load(gain + i);
#pragma unroll
        for (unsigned j = 0; j < N; j++) {
            values.at[j] = narrow<T>(widen(values.at[j]) * scale * widen(gains.at[j]));
        }
        values.store(y + i);
    }
}

template <class T, unsigned N>
__device__ void norm_row_back(const T *x, const T *gain, const T *dy, T *dx, unsigned width,
                              float eps, bool accumulate, unsigned lane, unsigned lanes) {
    float scale = inverse_rms<T, N>(x, width, eps, lane, lanes);
    float along = 0.0f;
    for (unsigned i = lane * N; i < width; i += lanes * N) {
        Pack<T, N> values = Pack<T, N>::load(x + i), gains = Pack<T, N>::load(gain + i);
        Pack<T, N> slopes = Pack<T, N>::load(dy + i);
#pragma unroll
        for (unsigned j = 0; j < N; j++) {
            along += widen(slopes.at[j]) * widen(gains.at[j]) * widen(values.at[j]);
        }
    }
    along = row_sum(along, lanes) * scale * scale * scale / width;
    for (unsigned i = lane * N; i < width; i += lanes * N) {
        Pack<T, N> values = Pack<T, N>::load(x + i), gains = Pack<T, N>::load(gain + i);
        Pack<T, N> slopes = Pack<T, N>::load(dy + i), sums;
        if (accumulate) sums = Pack<T, N>::load(dx + i);
#pragma unroll
        for (unsigned j = 0; j < N; j++) {
            float g = widen(slopes.at[j]) * widen(gains.at[j]);
            float slope = g * scale - widen(values.at[j]) * along;
            sums.at[j] = narrow<T>(accumulate ? widen(sums.at[j]) + slope : slope);
        }
        sums.store(dx + i);
    }
}

template <class T>
__device__ void norm(const T *x, const T *gain, T *y, unsigned rows, unsigned width, float eps,
                     unsigned lanes) {
    Row row = own_row(rows, width, lanes);
    if (!row.exists) return;
    bool packed = packable(x, width) && packable(gain, width) && packable(y, width);
    unsigned long long at = row.start;
    if (packed) {
        norm_row<T, PACK<T>>(x + at, gain, y + at, width, eps, row.lane, lanes);
    } else {
        norm_row<T, 1>(x + at, gain, y + at, width, eps, row.lane, lanes);
    }
}

template <class T>
__device__ void norm_back(const T *x, const T *gain, const T *dy, T *dx, unsigned rows,
                          unsigned width, float eps, unsigned accumulate, unsigned lanes) {
    Row row = own_row(rows, width, lanes);
    if (!row.exists) return;
    bool packed = packable(x, width) && packable(gain, width) && packable(dy, width) &&
                  packable(dx, width);
    unsigned long long at = row.start;
    bool add = accumulate != 0;
    if (packed) {
        norm_row_back<T, PACK<T>>(x + at, gain, dy + at, dx + at, width, eps, add, row.lane, lanes);
    } else {
        norm_row_back<T, 1>(x + at, gain, dy + at, dx + at, width, eps, add, row.lane, lanes);
    }
}

#define KERNELS(T, NAME)                                                                            \
    extern "C" __global__ void rms_norm_##NAME(const T *x, const T *gain, T *y, unsigned rows,      \
                                               unsigned width, float eps, unsigned lanes) {         \
        norm(x, gain, y, rows, width, eps, lanes);                                                  \
    }                                                                                               \
    extern "C" __global__ void rms_norm_back_##NAME(                                                \
        const T *x, const T *gain, const T *dy, T *dx, unsigned rows, unsigned width, float eps,    \
        unsigned accumulate, unsigned lanes) {                                                      \
        norm_back(x, gain, dy, dx, rows, width, eps, accumulate, lanes);                            \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

#undef KERNELS
