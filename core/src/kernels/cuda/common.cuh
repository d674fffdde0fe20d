// What all kernels share: values of either type as f32, 16 bytes at a time, sums over warps and blocks.
#pragma once

#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bf16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float value) {
    return __float2bfloat16_rn(value);
}

// N neighbouring values, read and written at once.
template <class T, unsigned N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];

    static __device__ __forceinline__ Pack load(const T *from) {
        return *reinterpret_cast<const Pack *>(from);
    }
    __device__ __forceinline__ void store(T *to) const { *reinterpret_cast<Pack *>(to) = *this; }
};

// Values of 16 bytes, which is what a thread moves at once where all is aligned to it.
template <class T>
constexpr unsigned PACK = 16 / sizeof(T);

// Whether rows of `width` values that follow each other from `start` can be moved 16 bytes at a time.
template <class T>
__device__ __forceinline__ bool packable(const T *start, unsigned width) {
    return reinterpret_cast<unsigned long long>(start) % 16 == 0 && width % PACK<T> == 0;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// The sum over a row's `lanes` threads, a warp or the whole block; every thread of the block calls it.
__device__ __forceinline__ float row_sum(float value, unsigned lanes) {
    __shared__ float sums[WARP];
    value = warp_sum(value);
    if (lanes == WARP) return value;
    // Others may still read the sums of an earlier call.
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) total += sums[warp];
    return total;
}
