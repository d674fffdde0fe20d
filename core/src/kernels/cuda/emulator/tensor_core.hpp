// The warp-wide instructions of tensor_core.cuh on the processor, with the layouts that PTX gives them.
#pragma once

#include "cuda_bf16.h"

namespace emulator {

// The bf16 in half `half` of a register.
inline float element(uint32_t pair, unsigned half) {
    return __bfloat162float({uint16_t(half ? pair >> 16 : pair)});
}

}  // namespace emulator

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: each lane holds rows lane/4 and lane/4 + 8 of A
// and of the sums, and column lane/4 of B; of its row or column, pairs from 2·(lane % 4).
inline void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Operands {
        uint32_t a[4], b[2];
    } own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    emulator::Exchange<Operands> all(own);
    unsigned group = emulator::lane() / 4, pair = emulator::lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = group + 8 * (i / 2), column = 2 * pair + i % 2;
        float total = sum[i];
        for (unsigned k = 0; k < 16; k++) {
            unsigned at = k % 8 / 2;
            const Operands &of_row = all.read(row % 8 * 4 + at);
            const Operands &of_column = all.read(column * 4 + at);
            float x = emulator::element(of_row.a[row / 8 + 2 * (k / 8)], k % 2);
            total += x * emulator::element(of_column.b[k / 8], k % 2);
        }
        sum[i] = total;
    }
}

// ldmatrix.sync.aligned.m8n8.x4.b16, `transposed` with .trans: lane 8·i + r names row r of matrix i.
inline void load_matrices(uint32_t (&to)[4], const __nv_bfloat16 *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("ldmatrix of a row that is not aligned");
    emulator::Exchange<const __nv_bfloat16 *> rows(row);
    unsigned first = emulator::lane() / 4, second = emulator::lane() % 4 * 2;
    for (unsigned i = 0; i < 4; i++) {
        uint16_t low, high;
        if (transposed) {
            low = rows.read(8 * i + second)[first].bits;
            high = rows.read(8 * i + second + 1)[first].bits;
        } else {
            low = rows.read(8 * i + first)[second].bits;
            high = rows.read(8 * i + first)[second + 1].bits;
        }
        to[i] = low | uint32_t(high) << 16;
    }
}
