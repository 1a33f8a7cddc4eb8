// Inner products in vector types alone: what isa.h offers where an instruction set has nothing better.
//
// Written for vectors of any width. A lane of `weights` and `x` is 32 bits wide: two bfloat16, or four bytes.

#pragma once

#include <cstdint>

#include "vector.h"

namespace core {
namespace portable {

// The vectors of one width that the packed products are made of.
template <int kBytes>
struct Types {
  typedef float Floats __attribute__((vector_size(kBytes)));
  typedef int32_t Ints __attribute__((vector_size(kBytes)));
  typedef uint32_t Words __attribute__((vector_size(kBytes)));
};

// acc + the sum of two products of bfloat16, lane by lane.
template <typename Floats, typename Words>
inline Floats dot_bfloat16(const Floats& acc, const Words& weights, const Words& x) {
  return acc + bits_of<Floats>(weights << 16) * bits_of<Floats>(x << 16) +
         bits_of<Floats>(weights & 0xffff0000u) * bits_of<Floats>(x & 0xffff0000u);
}

// acc + the sum of four products of signed bytes, lane by lane.
template <typename Ints, typename Words>
inline Ints dot_signed(Ints acc, const Words& weights, const Words& x) {
  for (int byte = 0; byte < 4; ++byte) {
    const int up = 24 - 8 * byte;
    acc += (bits_of<Ints>(weights << up) >> 24) * (bits_of<Ints>(x << up) >> 24);
  }
  return acc;
}

// float16 to float.
template <typename Floats, typename Words>
inline Floats widen_halves(const Words& halves) {
  const Words magnitude = (halves & 0x7fffu) << 13;
  const Words scaled = bits_of<Words>(bits_of<Floats>(magnitude) * 0x1p112f);  // from a bias of 15 to one of 127
  const Words finite = bits_of<Words>(magnitude < 0x0f800000u);  // others are infinite, or no numbers
  return bits_of<Floats>((finite & scaled) | (~finite & (magnitude | 0x7f800000u)) | ((halves & 0x8000u) << 16));
}

}  // namespace portable
}  // namespace core
