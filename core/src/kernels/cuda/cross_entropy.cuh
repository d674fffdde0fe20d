// What the logits of a row say of its target, and in their place the gradient of log p(target) by
// them: [target] − softmax. One block for each row.
#pragma once

#include "common.cuh"

// Part of a row: its largest logit, the first place that has it, and Σ exp(logit − largest).
struct Part {
    float largest, sum;
    unsigned at;
};

__device__ __forceinline__ Part join(Part a, Part b) {
    bool first = a.largest > b.largest || (a.largest == b.largest && a.at < b.at);
    Part high = first ? a : b, low = first ? b : a;
    // A part without any logit has the largest −∞ and the sum 0.
    if (low.sum != 0.0f) high.sum += low.sum * expf(low.largest - high.largest);
    return high;
}

template <class T>
__device__ void score(T *logits, const unsigned *targets, float *scores, unsigned vocabulary,
                      unsigned with_gradient) {
    __shared__ Part parts[WARP];
    __shared__ Part whole;
    unsigned row = blockIdx.x, target = targets[row];
    T *own = logits + (unsigned long long)row * vocabulary;

    Part part = {-INFINITY, 0.0f, 0xffffffffu};
    bool damaged = false;
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float logit = widen(own[i]);
        damaged |= logit != logit;
        if (logit > part.largest) {
            part = {logit, part.sum * expf(part.largest - logit) + 1.0f, i};
        } else if (logit > -INFINITY) {
            part.sum += expf(logit - part.largest);
        }
    }
    // A NaN must not get lost among numbers: it becomes the row's sum.
    if (damaged) part.sum = NAN;
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        Part other = {__shfl_xor_sync(ALL_LANES, part.largest, step),
                      __shfl_xor_sync(ALL_LANES, part.sum, step),
                      __shfl_xor_sync(ALL_LANES, part.at, step)};
        part = join(part, other);
    }
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = part;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) part = join(part, parts[warp]);
        // The difference first: it is exact where the target is the likeliest.
        scores[2 * row] = (widen(own[target]) - part.largest) - logf(part.sum);
        scores[2 * row + 1] = part.at == target ? 1.0f : 0.0f;
        whole = part;
    }
    __syncthreads();
    if (!with_gradient) return;
    float largest = whole.largest, factor = 1.0f / whole.sum;
    for (unsigned i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float softmax = expf(widen(own[i]) - largest) * factor;
        own[i] = narrow<T>((i == target ? 1.0f : 0.0f) - softmax);
    }
}

#define KERNELS(T, NAME)                                                                            \
    extern "C" __global__ void score_##NAME(T *logits, const unsigned *targets, float *scores,      \
                                            unsigned vocabulary, unsigned with_gradient) {          \
        score(logits, targets, scores, vocabulary, with_gradient);                                  \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

#undef KERNELS
