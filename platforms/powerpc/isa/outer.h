// POWER10 multiplies a tile of four rows and four outputs in one instruction: a panel's 32 outputs take the eight
// accumulators there are. Included by linear_kernels.h; older processors keep its loops.

#pragma once

#ifdef __MMA__

#include "linear_kernels.h"

namespace core {

typedef __vector unsigned char Operand;

inline void outer_product(Float32, __vector_quad* sums, Operand x, Operand w) {
  __builtin_mma_xvf32gerpp(sums, x, w);
}
inline void outer_product(Bfloat16, __vector_quad* sums, Operand x, Operand w) {
  __builtin_mma_xvbf16ger2pp(sums, x, w);
}
inline void outer_product(Int8, __vector_quad* sums, Operand x, Operand w) {  // x is signed, w is not
  __builtin_mma_xvi8ger4pp(sums, x, w);
}

template <typename Dot, int kRows>
struct OuterSteps {
  static_assert(kRows <= 4 && kVectors == 8, "what the accumulators hold");

  static void add(const Tile& tile, int64_t steps, typename Dot::Sum (&sums)[kRows][kVectors]) {
    __vector_quad accumulators[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) __builtin_mma_xxsetaccz(&accumulators[v]);
    const uint8_t *weights = tile.weights, *x = tile.x, *ahead = tile.ahead;
    for (int64_t step = 0; step < steps; ++step) {
      prefetch_step(ahead);
      Words rows{};
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) std::memcpy(&rows[r], x + r * tile.stride, sizeof(rows[r]));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const Words w = vector_at<Words>(weights + v * isa::kWidth);
        outer_product(Dot(), &accumulators[v], bits_of<Operand>(rows), bits_of<Operand>(w));
      }
      weights += kStepBytes, ahead += kStepBytes, x += 4;
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      typename Dot::Sum products[4];
      __builtin_mma_disassemble_acc(products, &accumulators[v]);
      for (int r = 0; r < kRows; ++r) sums[r][v] += products[r];
    }
  }
};

template <int kRows>
struct Steps<Float32, kRows> : OuterSteps<Float32, kRows> {};
template <int kRows>
struct Steps<Bfloat16, kRows> : OuterSteps<Bfloat16, kRows> {};
template <int kRows>
struct Steps<Int8, kRows> : OuterSteps<Int8, kRows> {};

}  // namespace core

#endif  // __MMA__
