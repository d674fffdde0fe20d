// Causal attention of packed sequences, without a matrix of all scores.
//
// For a query of position p and the keys j it sees: s_j = scale·q·k_j, a = softmax(s), o = Σ a_j·v_j.
// The forward pass keeps L = log Σ exp s_j; the backward pass computes a_j = exp(s_j − L) again. With
// D = dO·o: dv_j = Σ a_j·dO, ds_j = a_j·(dO·v_j − D), dq = scale·Σ ds_j·k_j, dk_j = scale·Σ ds_j·q.
//
// A block has some queries, or keys, of one head, sixteen to a warp, and walks over what they meet a
// tile at a time. Every gradient is summed by one block in one order. A query sees keys of positions up
// to its own, of the last `window` where that is not 0.
#pragma once

#include "tensor_core.cuh"

namespace attention {

// The head's size that registers and tiles are made for, warps of a block, and rows of a tile that is
// walked over. Tiles fit 48 KiB of shared memory.
template <class T, unsigned HEAD>
struct Shape;
template <>
struct Shape<bf16, 64> {
    static constexpr unsigned FORWARD_WARPS = 4, FORWARD_TILE = 64, BACK_WARPS = 4, BACK_TILE = 64;
};
template <>
struct Shape<bf16, 128> {
    static constexpr unsigned FORWARD_WARPS = 4, FORWARD_TILE = 32, BACK_WARPS = 2, BACK_TILE = 32;
};
template <>
struct Shape<float, 64> {
    static constexpr unsigned FORWARD_WARPS = 4, FORWARD_TILE = 32, BACK_WARPS = 2, BACK_TILE = 32;
};
template <>
struct Shape<float, 128> {
    static constexpr unsigned FORWARD_WARPS = 2, FORWARD_TILE = 16, BACK_WARPS = 1, BACK_TILE = 16;
};

// Sizes that all blocks share.
struct Sizes {
    unsigned heads, kv_heads, head_dim, window;
    float scale;
};

// Some queries of a segment: their first row, how many, the position of the first, and where the rows
// of the segment's keys start in the list of such rows.
struct Queries {
    unsigned row, count, position, keys;
};

// Some keys: their first row, how many, and which visits they get.
struct Keys {
    unsigned row, count, first, end;
};

// A segment that sees some keys: the position of the first of them, the first row of the segment's
// queries, how many, and the position of the first.
struct Visit {
    unsigned key_position, row, count, position;
};

__device__ __forceinline__ bool sees(unsigned query, unsigned key, unsigned window) {
    return key <= query && (window == 0 || query - key < window);
}

// Copies `count` rows of one head into a tile of ROWS rows, HEAD wide; zero where there is nothing.
// `row(i)` is the place of row i.
template <class T, unsigned HEAD, unsigned N, class Row>
__device__ __forceinline__ void fetch_packs(T *tile, const T *from, unsigned rows, unsigned count,
                                            unsigned heads, unsigned head, unsigned head_dim,
                                            Row row) {
    for (unsigned i = threadIdx.x; i < rows * (HEAD / N); i += blockDim.x) {
        unsigned r = i / (HEAD / N), column = i % (HEAD / N) * N;
        Pack<T, N> values = {};
        if (r < count && column < head_dim) {
            unsigned long long at = ((unsigned long long)row(r) * heads + head) * head_dim + column;
            values = Pack<T, N>::load(from + at);
        }
        values.store(tile + r * PADDED<T, HEAD> + column);
    }
}

template <class T, unsigned HEAD, class Row>
__device__ __forceinline__ void fetch(T *tile, const T *from, unsigned rows, unsigned count,
                                      unsigned heads, unsigned head, unsigned head_dim, Row row) {
    if (packable(from, head_dim)) {
        fetch_packs<T, HEAD, PACK<T>>(tile, from, rows, count, heads, head, head_dim, row);
    } else {
        fetch_packs<T, HEAD, 1>(tile, from, rows, count, heads, head, head_dim, row);
    }
}

// sums = a·bᵀ over a head: rows of the warp in `a`, columns the COLUMNS rows of `b`.
template <class T, unsigned HEAD, unsigned COLUMNS>
__device__ __forceinline__ void products_of_rows(float (&sums)[COLUMNS / 8][4], const T *a, const T *b) {
    constexpr unsigned STRIDE = PADDED<T, HEAD>;
#pragma unroll
    for (unsigned n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) sums[n][i] = 0.0f;
    }
#pragma unroll
    for (unsigned k = 0; k < HEAD; k += 16) {
        Left<T> rows;
        load_left<STRIDE>(rows, a + k);
#pragma unroll
        for (unsigned n = 0; n < COLUMNS / 16; n++) {
            Right<T> columns[2];
            load_right_rows<STRIDE>(columns, b + n * 16 * STRIDE + k);
            multiply<T>(sums[2 * n], rows, columns[0]);
            multiply<T>(sums[2 * n + 1], rows, columns[1]);
        }
    }
}

// sums += p·b with weights `p` of the COLUMNS rows of `b`, HEAD wide.
template <class T, unsigned HEAD, unsigned COLUMNS>
__device__ __forceinline__ void add_weighted(float (&sums)[HEAD / 8][4],
                                             const float (&p)[COLUMNS / 8][4], const T *b) {
    constexpr unsigned STRIDE = PADDED<T, HEAD>;
#pragma unroll
    for (unsigned k = 0; k < COLUMNS / 16; k++) {
        Left<T> weights = as_left<T>(p[2 * k], p[2 * k + 1]);
#pragma unroll
        for (unsigned n = 0; n < HEAD / 16; n++) {
            Right<T> columns[2];
            load_right_columns<STRIDE>(columns, b + k * 16 * STRIDE + n * 16);
            multiply<T>(sums[2 * n], weights, columns[0]);
            multiply<T>(sums[2 * n + 1], weights, columns[1]);
        }
    }
}

// Writes the warp's sums, times a factor for each of a lane's two rows, to `count` rows from `row`.
template <class T, unsigned HEAD>
__device__ __forceinline__ void put(T *to, const float (&sums)[HEAD / 8][4], unsigned row,
                                    unsigned count, unsigned heads, unsigned head,
                                    unsigned head_dim, const float (&factor)[2]) {
    unsigned lane = threadIdx.x % WARP, first = threadIdx.x / WARP * 16 + lane / 4;
#pragma unroll
    for (unsigned n = 0; n < HEAD / 8; n++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            unsigned r = first + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
            if (r >= count || column >= head_dim) continue;
            unsigned long long at = ((unsigned long long)(row + r) * heads + head) * head_dim + column;
            to[at] = narrow<T>(sums[n][i] * factor[i / 2]);
        }
    }
}

// Over the four lanes that share rows.
__device__ __forceinline__ float row_largest(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// The position of the first key that a query of this position sees.
__device__ __forceinline__ unsigned first_seen(unsigned position, unsigned window) {
    return window != 0 && position >= window ? position - window + 1 : 0;
}

template <class T, unsigned HEAD>
__device__ void forward(const T *q, const T *k, const T *v, T *out, float *log_sum_exp,
                        const Queries *tiles, const unsigned *key_rows, const Sizes &sizes) {
    constexpr unsigned STRIDE = PADDED<T, HEAD>, TILE = Shape<T, HEAD>::FORWARD_TILE;
    constexpr unsigned ROWS = 16 * Shape<T, HEAD>::FORWARD_WARPS;
    __shared__ __align__(16) T queries[ROWS * STRIDE];
    __shared__ __align__(16) T keys[TILE * STRIDE];
    __shared__ __align__(16) T values[TILE * STRIDE];
    Queries own = tiles[blockIdx.x];
    unsigned head = blockIdx.y, kv_head = head / (sizes.heads / sizes.kv_heads);
    unsigned lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
    auto query_row = [&](unsigned i) { return own.row + i; };
    fetch<T, HEAD>(queries, q, ROWS, own.count, sizes.heads, head, sizes.head_dim, query_row);

    float sums[HEAD / 8][4] = {};
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    unsigned end = own.position + own.count;
    for (unsigned start = first_seen(own.position, sizes.window); start < end; start += TILE) {
        auto key_row = [&](unsigned i) { return key_rows[own.keys + start + i]; };
        fetch<T, HEAD>(keys, k, TILE, end - start, sizes.kv_heads, kv_head, sizes.head_dim, key_row);
        fetch<T, HEAD>(values, v, TILE, end - start, sizes.kv_heads, kv_head, sizes.head_dim, key_row);
        __syncthreads();
        float scores[TILE / 8][4];
        products_of_rows<T, HEAD, TILE>(scores, queries + first_row * STRIDE, keys);
        float most[2] = {largest[0], largest[1]};
#pragma unroll
        for (unsigned n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                unsigned query = own.position + first_row + lane / 4 + i / 2 * 8;
                unsigned key = start + n * 8 + lane % 4 * 2 + i % 2;
                bool seen = key < end && sees(query, key, sizes.window);
                scores[n][i] = seen ? scores[n][i] * sizes.scale : -INFINITY;
                most[i / 2] = fmaxf(most[i / 2], scores[n][i]);
            }
        }
        float shrink[2], part[2] = {0.0f, 0.0f};
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            most[r] = row_largest(most[r]);
            // A row that has seen nothing yet keeps −∞ out of differences.
            float base = most[r] == -INFINITY ? 0.0f : most[r];
            shrink[r] = expf(largest[r] - base);
            largest[r] = most[r];
            most[r] = base;
        }
#pragma unroll
        for (unsigned n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                scores[n][i] = expf(scores[n][i] - most[i / 2]);
                part[i / 2] += scores[n][i];
            }
        }
#pragma unroll
        for (unsigned r = 0; r < 2; r++) total[r] = total[r] * shrink[r] + quad_sum(part[r]);
#pragma unroll
        for (unsigned n = 0; n < HEAD / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) sums[n][i] *= shrink[i / 2];
        }
        add_weighted<T, HEAD, TILE>(sums, scores, values);
        __syncthreads();
    }
    float factor[2] = {1.0f / total[0], 1.0f / total[1]};
    put<T, HEAD>(out, sums, own.row, own.count, sizes.heads, head, sizes.head_dim, factor);
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        unsigned row = first_row + lane / 4 + r * 8;
        if (lane % 4 != 0 || row >= own.count) continue;
        unsigned long long at = (unsigned long long)(own.row + row) * sizes.heads + head;
        log_sum_exp[at] = largest[r] + logf(total[r]);
    }
}

// D = dO·o of every row and head: a warp for each.
template <class T>
__device__ void delta(const T *out, const T *d_out, float *delta, unsigned count, unsigned head_dim) {
    unsigned at = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (at >= count) return;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % WARP; i < head_dim; i += WARP) {
        unsigned long long value = (unsigned long long)at * head_dim + i;
        sum += widen(out[value]) * widen(d_out[value]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[at] = sum;
}

// What the backward pass knows of queries: both gradients that it starts from.
struct Saved {
    const float *log_sum_exp, *delta;
};

template <class T, unsigned HEAD>
__device__ void queries_back(const T *q, const T *k, const T *v, const T *d_out, const Saved &saved,
                             T *dq, const Queries *tiles, const unsigned *key_rows,
                             const Sizes &sizes) {
    constexpr unsigned STRIDE = PADDED<T, HEAD>, TILE = Shape<T, HEAD>::BACK_TILE;
    constexpr unsigned ROWS = 16 * Shape<T, HEAD>::BACK_WARPS;
    __shared__ __align__(16) T queries[ROWS * STRIDE];
    __shared__ __align__(16) T slopes[ROWS * STRIDE];
    __shared__ __align__(16) T keys[TILE * STRIDE];
    __shared__ __align__(16) T values[TILE * STRIDE];
    Queries own = tiles[blockIdx.x];
    unsigned head = blockIdx.y, kv_head = head / (sizes.heads / sizes.kv_heads);
    unsigned lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
    auto query_row = [&](unsigned i) { return own.row + i; };
    fetch<T, HEAD>(queries, q, ROWS, own.count, sizes.heads, head, sizes.head_dim, query_row);
    fetch<T, HEAD>(slopes, d_out, ROWS, own.count, sizes.heads, head, sizes.head_dim, query_row);
    float log_sum[2] = {0.0f, 0.0f}, along[2] = {0.0f, 0.0f};
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        unsigned row = first_row + lane / 4 + r * 8;
        unsigned long long at = (unsigned long long)(own.row + row) * sizes.heads + head;
        if (row < own.count) log_sum[r] = saved.log_sum_exp[at], along[r] = saved.delta[at];
    }

    float sums[HEAD / 8][4] = {};
    unsigned end = own.position + own.count;
    for (unsigned start = first_seen(own.position, sizes.window); start < end; start += TILE) {
        auto key_row = [&](unsigned i) { return key_rows[own.keys + start + i]; };
        fetch<T, HEAD>(keys, k, TILE, end - start, sizes.kv_heads, kv_head, sizes.head_dim, key_row);
        fetch<T, HEAD>(values, v, TILE, end - start, sizes.kv_heads, kv_head, sizes.head_dim, key_row);
        __syncthreads();
        float scores[TILE / 8][4], d_scores[TILE / 8][4];
        products_of_rows<T, HEAD, TILE>(scores, queries + first_row * STRIDE, keys);
        products_of_rows<T, HEAD, TILE>(d_scores, slopes + first_row * STRIDE, values);
#pragma unroll
        for (unsigned n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                unsigned row = first_row + lane / 4 + i / 2 * 8;
                unsigned key = start + n * 8 + lane % 4 * 2 + i % 2;
                bool seen = row < own.count && key < end && sees(own.position + row, key, sizes.window);
                float weight = seen ? expf(scores[n][i] * sizes.scale - log_sum[i / 2]) : 0.0f;
                scores[n][i] = weight * (d_scores[n][i] - along[i / 2]);
            }
        }
        add_weighted<T, HEAD, TILE>(sums, scores, keys);
        __syncthreads();
    }
    float factor[2] = {sizes.scale, sizes.scale};
    put<T, HEAD>(dq, sums, own.row, own.count, sizes.heads, head, sizes.head_dim, factor);
}

template <class T, unsigned HEAD>
__device__ void keys_back(const T *q, const T *k, const T *v, const T *d_out, const Saved &saved,
                          T *dk, T *dv, const Keys *tiles, const Visit *visits, const Sizes &sizes) {
    constexpr unsigned STRIDE = PADDED<T, HEAD>, TILE = Shape<T, HEAD>::BACK_TILE;
    constexpr unsigned ROWS = 16 * Shape<T, HEAD>::BACK_WARPS;
    __shared__ __align__(16) T keys[ROWS * STRIDE];
    __shared__ __align__(16) T values[ROWS * STRIDE];
    __shared__ __align__(16) T queries[TILE * STRIDE];
    __shared__ __align__(16) T slopes[TILE * STRIDE];
    __shared__ float log_sums[TILE], alongs[TILE];
    Keys own = tiles[blockIdx.x];
    unsigned kv_head = blockIdx.y, group = sizes.heads / sizes.kv_heads;
    unsigned lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
    auto key_row = [&](unsigned i) { return own.row + i; };
    fetch<T, HEAD>(keys, k, ROWS, own.count, sizes.kv_heads, kv_head, sizes.head_dim, key_row);
    fetch<T, HEAD>(values, v, ROWS, own.count, sizes.kv_heads, kv_head, sizes.head_dim, key_row);

    float sums_k[HEAD / 8][4] = {}, sums_v[HEAD / 8][4] = {};
    for (unsigned at = own.first; at < own.end; at++) {
        Visit visit = visits[at];
        // Queries from the first that sees the first key to the last that sees the last.
        unsigned first = visit.key_position > visit.position ? visit.key_position - visit.position : 0;
        unsigned end = visit.count;
        unsigned long long last = (unsigned long long)visit.key_position + own.count + sizes.window;
        if (sizes.window != 0 && last < (unsigned long long)visit.position + visit.count + 1) {
            end = last > visit.position + 1 ? (unsigned)(last - 1 - visit.position) : 0;
        }
        for (unsigned start = first; start < end; start += TILE) {
            auto query_row = [&](unsigned i) { return visit.row + start + i; };
            for (unsigned member = 0; member < group; member++) {
                unsigned head = kv_head * group + member, count = end - start;
                // Whoever still reads the tiles of the turn before.
                __syncthreads();
                fetch<T, HEAD>(queries, q, TILE, count, sizes.heads, head, sizes.head_dim, query_row);
                fetch<T, HEAD>(slopes, d_out, TILE, count, sizes.heads, head, sizes.head_dim, query_row);
                for (unsigned i = threadIdx.x; i < TILE; i += blockDim.x) {
                    unsigned long long of = (unsigned long long)query_row(i) * sizes.heads + head;
                    log_sums[i] = i < count ? saved.log_sum_exp[of] : 0.0f;
                    alongs[i] = i < count ? saved.delta[of] : 0.0f;
                }
                __syncthreads();
                float weights[TILE / 8][4], d_scores[TILE / 8][4];
                products_of_rows<T, HEAD, TILE>(weights, keys + first_row * STRIDE, queries);
                products_of_rows<T, HEAD, TILE>(d_scores, values + first_row * STRIDE, slopes);
#pragma unroll
                for (unsigned n = 0; n < TILE / 8; n++) {
#pragma unroll
                    for (unsigned i = 0; i < 4; i++) {
                        unsigned row = first_row + lane / 4 + i / 2 * 8;
                        unsigned column = n * 8 + lane % 4 * 2 + i % 2;
                        unsigned query = visit.position + start + column;
                        bool seen = row < own.count && column < count &&
                                    sees(query, visit.key_position + row, sizes.window);
                        float score = weights[n][i] * sizes.scale - log_sums[column];
                        weights[n][i] = seen ? expf(score) : 0.0f;
                        d_scores[n][i] = weights[n][i] * (d_scores[n][i] - alongs[column]);
                    }
                }
                add_weighted<T, HEAD, TILE>(sums_v, weights, slopes);
                add_weighted<T, HEAD, TILE>(sums_k, d_scores, queries);
            }
        }
    }
    float scale[2] = {sizes.scale, sizes.scale}, one[2] = {1.0f, 1.0f};
    put<T, HEAD>(dk, sums_k, own.row, own.count, sizes.kv_heads, kv_head, sizes.head_dim, scale);
    put<T, HEAD>(dv, sums_v, own.row, own.count, sizes.kv_heads, kv_head, sizes.head_dim, one);
}

}  // namespace attention

// Tables are rows of numbers: of `Queries`, the rows of keys, of `Keys`, of `Visit`.
#define KERNELS(T, HEAD, NAME)                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * attention::Shape<T, HEAD>::FORWARD_WARPS)     \
        attend_##NAME(const T *q, const T *k, const T *v, T *out, float *log_sum_exp,               \
                      const unsigned *queries, const unsigned *key_rows, unsigned heads,            \
                      unsigned kv_heads, unsigned head_dim, unsigned window, float scale) {         \
        attention::forward<T, HEAD>(q, k, v, out, log_sum_exp,                                      \
                                    reinterpret_cast<const attention::Queries *>(queries),          \
                                    key_rows, {heads, kv_heads, head_dim, window, scale});          \
    }                                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * attention::Shape<T, HEAD>::BACK_WARPS)        \
        attend_queries_back_##NAME(const T *q, const T *k, const T *v, const T *d_out,              \
                                   const float *log_sum_exp, const float *delta, T *dq,             \
                                   const unsigned *queries, const unsigned *key_rows,               \
                                   unsigned heads, unsigned kv_heads, unsigned head_dim,            \
                                   unsigned window, float scale) {                                  \
        attention::queries_back<T, HEAD>(q, k, v, d_out, {log_sum_exp, delta}, dq,                  \
                                         reinterpret_cast<const attention::Queries *>(queries),     \
                                         key_rows, {heads, kv_heads, head_dim, window, scale});     \
    }                                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * attention::Shape<T, HEAD>::BACK_WARPS)        \
        attend_keys_back_##NAME(const T *q, const T *k, const T *v, const T *d_out,                 \
                                const float *log_sum_exp, const float *delta, T *dk, T *dv,         \
                                const unsigned *keys, const unsigned *visits, unsigned heads,       \
                                unsigned kv_heads, unsigned head_dim, unsigned window,              \
                                float scale) {                                                      \
        attention::keys_back<T, HEAD>(q, k, v, d_out, {log_sum_exp, delta}, dk, dv,                 \
                                      reinterpret_cast<const attention::Keys *>(keys),              \
                                      reinterpret_cast<const attention::Visit *>(visits),           \
                                      {heads, kv_heads, head_dim, window, scale});                  \
    }

KERNELS(float, 64, head64_f32)
KERNELS(float, 128, head128_f32)
KERNELS(bf16, 64, head64_bf16)
KERNELS(bf16, 128, head128_bf16)

#undef KERNELS

#define KERNELS(T, NAME)                                                                            \
    extern "C" __global__ void attend_delta_##NAME(const T *out, const T *d_out, float *delta,      \
                                                   unsigned count, unsigned head_dim) {             \
        attention::delta(out, d_out, delta, count, head_dim);                                       \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)

#undef KERNELS
