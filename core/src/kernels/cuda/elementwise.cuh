// SwiGLU, y = silu(gate)·up with silu(g) = g·σ(g), and rotary embedding.
#pragma once

#include "common.cuh"

// The first of the N values that are the thread's.
template <unsigned N>
__device__ __forceinline__ unsigned long long own_start() {
    return ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
}

__device__ __forceinline__ float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }

template <class T, unsigned N>
__device__ void swiglu_values(const T *gate, const T *up, T *y, unsigned long long at) {
    Pack<T, N> gates = Pack<T, N>::load(gate + at), ups = Pack<T, N>::load(up + at);
#pragma unroll
    for (unsigned j = 0; j < N; j++) {
        float g = widen(gates.at[j]);
        gates.at[j] = narrow<T>(g * sigmoid(g) * widen(ups.at[j]));
    }
    gates.store(y + at);
}

// du = dy·g·σ and dg = dy·u·σ·(1 + g·(1 − σ)), in place of both inputs.
template <class T, unsigned N>
__device__ void swiglu_values_back(T *gate, T *up, const T *dy, unsigned long long at) {
    Pack<T, N> gates = Pack<T, N>::load(gate + at), ups = Pack<T, N>::load(up + at);
    Pack<T, N> slopes = Pack<T, N>::load(dy + at);
#pragma unroll
    for (unsigned j = 0; j < N; j++) {
        float g = widen(gates.at[j]), u = widen(ups.at[j]), slope = widen(slopes.at[j]);
        float s = sigmoid(g);
        ups.at[j] = narrow<T>(slope * g * s);
        gates.at[j] = narrow<T>(slope * u * s * (1.0f + g * (1.0f - s)));
    }
    gates.store(gate + at);
    ups.store(up + at);
}

// Each thread has 16 bytes; the last of all what is left, value by value, as has every thread where
// something is not aligned.
template <class T>
__device__ void swiglu(const T *gate, const T *up, T *y, unsigned count) {
    constexpr unsigned N = PACK<T>;
    unsigned long long start = own_start<N>();
    bool packed = packable(gate, N) && packable(up, N) && packable(y, N);
    if (packed && start + N <= count) return swiglu_values<T, N>(gate, up, y, start);
    for (unsigned long long i = start; i < start + N && i < count; i++) {
        swiglu_values<T, 1>(gate, up, y, i);
    }
}

template <class T>
__device__ void swiglu_back(T *gate, T *up, const T *dy, unsigned count) {
    constexpr unsigned N = PACK<T>;
    unsigned long long start = own_start<N>();
    bool packed = packable(gate, N) && packable(up, N) && packable(dy, N);
    if (packed && start + N <= count) return swiglu_values_back<T, N>(gate, up, dy, start);
    for (unsigned long long i = start; i < start + N && i < count; i++) {
        swiglu_values_back<T, 1>(gate, up, dy, i);
    }
}

// (a, b) → (a·cos − b·sin, b·cos + a·sin) for value a of a head's first half and b of its second.
// `pair` counts such pairs through all tokens and heads; a row of the tables is that of a token.
template <class T, unsigned N>
__device__ void rotate_pairs(T *x, const float *cos, const float *sin, unsigned half,
                             unsigned heads, float sign, unsigned long long pair) {
    unsigned long long head = pair / half, within = pair % half;
    T *first = x + head * 2 * half + within, *second = first + half;
    unsigned long long angle = head / heads * half + within;
    Pack<T, N> a = Pack<T, N>::load(first), b = Pack<T, N>::load(second);
#pragma unroll
    for (unsigned j = 0; j < N; j++) {
        float c = cos[angle + j], s = sign * sin[angle + j];
        float u = widen(a.at[j]), v = widen(b.at[j]);
        a.at[j] = narrow<T>(u * c - v * s);
        b.at[j] = narrow<T>(v * c + u * s);
    }
    a.store(first);
    b.store(second);
}

template <class T>
__device__ void rotate(T *x, const float *cos, const float *sin, unsigned pairs, unsigned half,
                       unsigned heads, float sign) {
    constexpr unsigned N = PACK<T>;
    unsigned long long start = own_start<N>();
    if (packable(x, half) && start + N <= pairs) {
        return rotate_pairs<T, N>(x, cos, sin, half, heads, sign, start);
    }
    for (unsigned long long i = start; i < start + N && i < pairs; i++) {
        rotate_pairs<T, 1>(x, cos, sin, half, heads, sign, i);
    }
}

#define KERNELS(T, NAME)                                                                            \
    extern "C" __global__ void swiglu_##NAME(const T *gate, const T *up, T *y, unsigned count) {    \
        swiglu(gate, up, y, count);                                                                 \
    }                                                                                               \
    extern "C" __global__ void swiglu_back_##NAME(T *gate, T *up, const T *dy, unsigned count) {    \
        swiglu_back(gate, up, dy, count);                                                           \
    }                                                                                               \
    extern "C" __global__ void rotate_##NAME(T *x, const float *cos, const float *sin,              \
                                             unsigned pairs, unsigned half, unsigned heads,         \
                                             float sign) {                                          \
        rotate(x, cos, sin, pairs, half, heads, sign);                                              \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

#undef KERNELS
