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

// As many float16 as a vector has floats, to float. Those below float16's normal range are made from whole numbers:
// as floats of the same bits they would be zero to a processor that flushes what is too small.
template <int kBytes>
inline typename Types<kBytes>::Floats widen_halves(const uint16_t* from) {
  typedef typename Types<kBytes>::Floats Floats;
  typedef typename Types<kBytes>::Ints Ints;
  typedef typename Types<kBytes>::Words Words;
  typedef uint16_t Narrow __attribute__((vector_size(kBytes / 2)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  const Words halves = __builtin_convertvector(narrow, Words), magnitude = halves & 0x7fffu;
  const Words rebased = (magnitude << 13) + (112u << 23);                       // from a bias of 15 to one of 127
  const Words infinite = bits_of<Words>(magnitude >= 0x7c00u) & (112u << 23);   // no numbers, too: the largest exponent
  const Words small = bits_of<Words>(__builtin_convertvector(bits_of<Ints>(magnitude), Floats) * 0x1p-24f);
  const Words is_small = bits_of<Words>(magnitude < 0x0400u);
  const Words chosen = (is_small & small) | (~is_small & (rebased + infinite));
  return bits_of<Floats>(chosen | ((halves & 0x8000u) << 16));
}

inline Halves to_bfloat16(const Vector& v) {
  bfloat16 narrowed[kLanes];
  store(narrowed, v);
  return bits_of<Halves>(narrowed);
}

// The larger of each pair; b where either is not a number.
inline Vector larger(const Vector& a, const Vector& b) { return a > b ? a : b; }

// Two vectors as one of pairs of bfloat16, rounded to the nearest, ties up.
inline Bits to_pairs(const Vector& even, const Vector& odd) {
  const Bits half = Bits{} + 0x8000u;
  return ((bits_of<Bits>(even) + half) >> 16) | ((bits_of<Bits>(odd) + half) & 0xffff0000u);
}

}  // namespace portable
}  // namespace core
