// What one lane multiplies in one step, four bytes: a float, or two bfloat16 that follow each other.

#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"
#include "vector.h"

namespace core {

// How many elements of T a unit holds.
template <typename T>
constexpr int64_t kPerUnit = static_cast<int64_t>(sizeof(uint32_t) / sizeof(T));

template <typename V, typename From>
inline V vector_from(const From* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void store_bits(uint32_t* to, const Bits& b) { std::memcpy(to, &b, sizeof(b)); }

// sum + a * b, lane by lane.
template <typename T>
inline isa::Floats multiply_add(const isa::Floats& sum, const isa::Words& a, const isa::Words& b) {
  if constexpr (sizeof(T) == sizeof(float)) return sum + bits_of<isa::Floats>(a) * bits_of<isa::Floats>(b);
  return isa::dot_bfloat16(sum, a, b);
}

// Rounds to what T holds, in one instruction where there is one.
inline void put(float* to, const Vector& v) { store(to, v); }

inline void put(bfloat16* to, const Vector& v) {
  const Halves h = isa::to_bfloat16(v);
  std::memcpy(to, &h, sizeof(h));
}

// Two vectors of non-negative floats as one vector of pairs, rounded to the nearest.
inline Bits pairs_of(const Vector& even, const Vector& odd) {
  const Bits half = Bits{} + 0x8000u;
  return ((bits_of<Bits>(even) + half) >> 16) | ((bits_of<Bits>(odd) + half) & 0xffff0000u);
}

// 2^x for x <= 0, exactly 0 from -127 down: to 2 units in the last place, or to 1e-4 for weights that are rounded to
// bfloat16.
template <typename T>
inline Vector power_of_two(Vector x) {
  const Vector lowest = Vector{} - 127.0f;
  x = x < lowest ? lowest : x;
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector shifted = x + magic;
  const Vector r = x - (shifted - magic);
  Vector p;
  if constexpr (sizeof(T) == 4) {
    p = Vector{} + 1.5403530e-4f;
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
  } else {
    p = Vector{} + 5.5009370e-2f;
    p = p * r + 2.4221106e-1f;
    p = p * r + 6.9328284e-1f;
  }
  p = p * r + 1.0f;
  // The whole number stands in the low bits of `shifted`.
  return bits_of<Vector>(bits_of<Bits>(p) + (bits_of<Bits>(shifted) << 23));
}

}  // namespace core
