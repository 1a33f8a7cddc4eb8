// Inner products for an instruction set that nobody has written for: see portable.h.
//
// A platform puts an isa.h of its own in front of this one on the include path. It defines all of these names.

#pragma once

#include "portable.h"

namespace core {
namespace isa {

constexpr int kWidth = __BIGGEST_ALIGNMENT__ >= 64 ? 64 : __BIGGEST_ALIGNMENT__ >= 32 ? 32 : 16;  // bytes of a vector
typedef portable::Types<kWidth>::Floats Floats;
typedef portable::Types<kWidth>::Ints Ints;
typedef portable::Types<kWidth>::Words Words;

constexpr int kRows = kWidth == 64 ? 12 : 3;        // of activations that are multiplied together
constexpr int kGroupedRows = kWidth == 64 ? 6 : 2;  // the same, with two sums for each product
constexpr int kOffset = 0;  // what is added to signed weights when they are packed; their products then contain it

inline Floats dot_bfloat16(const Floats& acc, const Words& weights, const Words& x) {
  return portable::dot_bfloat16(acc, weights, x);
}

// acc + the products of x, bytes within +-127, with weights that had kOffset added.
inline Ints dot_bytes(const Ints& acc, const Words& weights, const Words& x) {
  return portable::dot_signed(acc, weights, x);
}

// The same, of weights from 0 to 15.
inline Ints dot_nibbles(const Ints& acc, const Words& weights, const Words& x) {
  return portable::dot_signed(acc, weights, x);
}

// As many float16 as a vector has floats, to float.
inline Floats widen_halves(const uint16_t* from) { return portable::widen_halves<kWidth>(from); }

inline Halves to_bfloat16(const Vector& v) { return portable::to_bfloat16(v); }

// The larger of each pair; b where either is not a number.
inline Vector larger(const Vector& a, const Vector& b) { return portable::larger(a, b); }

// Lower halves from `even`, upper halves from `odd`.
inline Bits to_pairs(const Vector& even, const Vector& odd) { return portable::to_pairs(even, odd); }

}  // namespace isa
}  // namespace core
