// The inner loops: a tile of rows times one panel, all sums in registers from the first step to the last.
//
// A row's sums are added up in the same order whatever tile the row is in, so that its results do not depend on the
// rows beside it.

#pragma once

#include <cstddef>
#include <utility>

#include "linear_panel.h"

namespace core {

using isa::Floats;
using isa::Ints;
using isa::Words;

constexpr int kVectors = kStepBytes / isa::kWidth;  // of one step

// One tile of work.
struct Tile {
  const uint8_t* weights;  // the panel
  const uint8_t* x;        // the first row
  int64_t stride;          // bytes from one row to the next
  const uint8_t* ahead;    // as many bytes as the panel has, to be brought closer meanwhile
};

template <typename F, int... kIndex>
inline __attribute__((always_inline)) void repeat(std::integer_sequence<int, kIndex...>, F body) {
  (body(std::integral_constant<int, kIndex>()), ...);
}

// Calls body(0) ... body(count - 1), each a compile-time constant, so that arrays it indexes become registers.
template <int kCount, typename F>
inline __attribute__((always_inline)) void repeat(F body) {
  repeat(std::make_integer_sequence<int, kCount>(), body);
}

#define ALWAYS __attribute__((always_inline))

template <typename V>
inline ALWAYS V vector_at(const void* from) {
  V v;
  std::memcpy(&v, __builtin_assume_aligned(from, isa::kWidth), sizeof(v));
  return v;
}

// Four bytes in every lane.
inline ALWAYS Words spread(const void* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return Words{} + word;
}

// To the i-th vector of `to`.
inline ALWAYS void put(float* to, int i, const Floats& v) {
  std::memcpy(to + i * (isa::kWidth / 4), &v, sizeof(v));
}

inline ALWAYS Floats spread_float(const void* from) { return bits_of<Floats>(spread(from)); }

inline ALWAYS void prefetch_step(const uint8_t* at) {
  __builtin_prefetch(at, 0, 2);
  __builtin_prefetch(at + 64, 0, 2);
}

struct Float32 {
  typedef Floats Sum;
  static Sum dot(const Sum& acc, const Words& w, const Words& x) {
    return acc + bits_of<Floats>(w) * bits_of<Floats>(x);
  }
};

struct Bfloat16 {
  typedef Floats Sum;
  static Sum dot(const Sum& acc, const Words& w, const Words& x) { return isa::dot_bfloat16(acc, w, x); }
};

struct Int8 {
  typedef Ints Sum;
  static Sum dot(const Sum& acc, const Words& w, const Words& x) { return isa::dot_bytes(acc, w, x); }
};

// Adds the products of a tile's steps to its sums. An outer.h beside isa.h may specialise it for instructions that
// multiply whole tiles.
template <typename Dot, int kRows>
struct Steps {
  static ALWAYS void add(const Tile& tile, int64_t steps, typename Dot::Sum (&sums)[kRows][kVectors]) {
    const uint8_t *weights = tile.weights, *x = tile.x, *ahead = tile.ahead;
#pragma GCC unroll 4  // a loop this short is left without a misprediction
    for (int64_t step = 0; step < steps; ++step) {
      prefetch_step(ahead);
      Words w[kVectors];
      repeat<kVectors>([&](auto v) ALWAYS { w[v] = vector_at<Words>(weights + v * isa::kWidth); });
      repeat<kRows>([&](auto r) ALWAYS {
        const Words word = spread(x + r * tile.stride);
        repeat<kVectors>([&](auto v) ALWAYS { sums[r][v] = Dot::dot(sums[r][v], w[v], word); });
      });
      weights += kStepBytes, ahead += kStepBytes, x += 4;
    }
  }
};

}  // namespace core

#if __has_include("outer.h")
#include "outer.h"
#endif

namespace core {

template <int kRows>
inline ALWAYS void put_all(float* results, const Floats (&totals)[kRows][kVectors]) {
  repeat<kRows>([&](auto r) ALWAYS {
    repeat<kVectors>([&](auto v) ALWAYS { put(results, r * kVectors + v, totals[r][v]); });
  });
}

// results [kRows, 32]. The float formats.
template <typename Dot, int kRows>
void multiply_tile(const Tile& tile, int64_t steps, float* results) {
  typename Dot::Sum sums[kRows][kVectors] = {};
  Steps<Dot, kRows>::add(tile, steps, sums);
  put_all(results, sums);
}

// Sums that begin with the corrections of blocks of type B.
template <typename B, int kRows>
inline ALWAYS void begin(const uint8_t* x, int64_t stride, Ints (&sums)[kRows][kVectors]) {
  repeat<kRows>([&](auto r) ALWAYS {
    const Words correction = spread(x + r * stride + offsetof(B, correction));
    repeat<kVectors>([&](auto v) ALWAYS { sums[r][v] = bits_of<Ints>(correction); });
  });
}

// results [kRows, 32]. int8 with one scale per output, by which the caller multiplies.
template <int kRows>
void multiply_chunks(const Tile& tile, int64_t steps, float* results) {
  constexpr int64_t kMost = kChunk / 4;  // steps of a chunk
  Floats totals[kRows][kVectors] = {};
  for (Tile chunk = tile; steps > 0; steps -= kMost) {
    Ints sums[kRows][kVectors];
    begin<Chunk>(chunk.x, tile.stride, sums);
    Steps<Int8, kRows>::add(chunk, std::min(steps, kMost), sums);
    repeat<kRows>([&](auto r) ALWAYS {
      const Floats scale = spread_float(chunk.x + r * tile.stride + offsetof(Chunk, scale));
      repeat<kVectors>([&](auto v) ALWAYS { totals[r][v] += __builtin_convertvector(sums[r][v], Floats) * scale; });
    });
    chunk.weights += kMost * kStepBytes, chunk.ahead += kMost * kStepBytes, chunk.x += sizeof(Chunk);
  }
  put_all(results, totals);
}

template <int32_t kFormat, int kRows>
inline ALWAYS void add_block(const uint8_t* weights, const uint8_t* x, int64_t stride, Ints (&sums)[kRows][kVectors]) {
  begin<Block>(x, stride, sums);
  repeat<kBlock / (kFormat == kInt8 ? 4 : 8)>([&](auto step) ALWAYS {
    Words w[kVectors];
    repeat<kVectors>([&](auto v) ALWAYS {
      w[v] = vector_at<Words>(weights + step * kStepBytes + v * isa::kWidth);
    });
    repeat<kRows>([&](auto r) ALWAYS {
      const uint8_t* from = x + r * stride + step * (kFormat == kInt8 ? 4 : 8);
      const Words first = spread(from);
      if constexpr (kFormat == kInt8) {
        repeat<kVectors>([&](auto v) ALWAYS { sums[r][v] = isa::dot_bytes(sums[r][v], w[v], first); });
      } else {
        const Words second = spread(from + 4);
        repeat<kVectors>([&](auto v) ALWAYS {
          sums[r][v] = isa::dot_nibbles(sums[r][v], w[v] & 0x0f0f0f0fu, first);
          sums[r][v] = isa::dot_nibbles(sums[r][v], (w[v] >> 4) & 0x0f0f0f0fu, second);
        });
      }
    });
  });
}

// results [kRows, 32]. The formats with groups: `blocks` blocks of activations, of which each group takes `group`.
template <int32_t kFormat, bool kMinimums, int kRows>
void multiply_groups(const Tile& tile, int64_t blocks, int64_t group, float* results) {
  constexpr int64_t kBlockBytes = kBlock / (kFormat == kInt8 ? 4 : 8) * kStepBytes;
  Floats totals[kRows][kVectors] = {};
  const uint8_t *weights = tile.weights, *x = tile.x;
  const int64_t ahead = tile.ahead - tile.weights;
  for (int64_t first = 0; first < blocks; first += group) {
    const uint16_t* header = reinterpret_cast<const uint16_t*>(weights);  // float16
    repeat<kMinimums ? 2 : 1>([&](auto i) ALWAYS { __builtin_prefetch(weights + ahead + i * 64, 0, 2); });
    weights += (kMinimums ? 4 : 2) * kPanel;
    for (int64_t block = 0; block < group; ++block) {
      repeat<kBlockBytes / 64>([&](auto i) ALWAYS { __builtin_prefetch(weights + ahead + i * 64, 0, 2); });
      Ints sums[kRows][kVectors];
      add_block<kFormat, kRows>(weights, x, tile.stride, sums);
      Floats scales[kVectors], minimums[kVectors];
      repeat<kVectors>([&](auto v) ALWAYS {
        scales[v] = isa::widen_halves(header + v * (isa::kWidth / 4));
        if constexpr (kMinimums) minimums[v] = isa::widen_halves(header + kPanel + v * (isa::kWidth / 4));
      });
      repeat<kRows>([&](auto r) ALWAYS {
        const uint8_t* row = x + r * tile.stride;
        const Floats scale = spread_float(row + offsetof(Block, scale));
        repeat<kVectors>([&](auto v) ALWAYS {
          totals[r][v] += __builtin_convertvector(sums[r][v], Floats) * (scales[v] * scale);
          if constexpr (kMinimums) totals[r][v] += minimums[v] * spread_float(row + offsetof(Block, sum));
        });
      });
      weights += kBlockBytes, x += sizeof(Block);
    }
  }
  put_all(results, totals);
}

#undef ALWAYS

}  // namespace core
