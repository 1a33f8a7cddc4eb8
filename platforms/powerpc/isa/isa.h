// Inner products in the instructions of POWER processors: VSX, from POWER8 on.

#pragma once

#include "portable.h"

namespace core {
namespace isa {

constexpr int kWidth = 16, kRows = 4, kGroupedRows = 2;  // 64 registers

typedef portable::Types<kWidth>::Floats Floats;
typedef portable::Types<kWidth>::Ints Ints;
typedef portable::Types<kWidth>::Words Words;

typedef __vector signed char SignedBytes;
typedef __vector unsigned char Bytes;

inline Floats dot_bfloat16(const Floats& acc, const Words& weights, const Words& x) {
  return portable::dot_bfloat16(acc, weights, x);
}

// vmsummbm multiplies signed bytes by unsigned ones: signed weights are packed with 128 added.
constexpr int kOffset = 128;

// acc + the products of x, bytes within +-127, with weights that had kOffset added.
inline Ints dot_bytes(const Ints& acc, const Words& weights, const Words& x) {
  return __builtin_altivec_vmsummbm(bits_of<SignedBytes>(x), bits_of<Bytes>(weights), acc);
}

// The same, of weights from 0 to 15.
inline Ints dot_nibbles(const Ints& acc, const Words& weights, const Words& x) {
  return dot_bytes(acc, weights, x);
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
