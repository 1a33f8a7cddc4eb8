// Powers, and what is made of them, as exactly as a result of type T can show.

#pragma once

#include <cstdint>

#include "isa.h"
#include "vector.h"

namespace core {

constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x up to 127, exactly 0 from -127 down: to 2 units in the last place, or to 1e-4 for what is rounded to
// bfloat16. 2^x = 2^n * p(r) with |r| <= 1/2; p is the Taylor polynomial, or the cubic of the smallest error.
template <typename T>
inline Vector power_of_two(Vector x) {
  x = isa::larger(Vector{} - 127.0f, x);
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector shifted = x + magic;
  const Vector r = x - (shifted - magic);
  Vector p;
  if constexpr (sizeof(T) == sizeof(float)) {
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

// x / (1 + e^-x)
template <typename T>
inline Vector silu(const Vector& x) {
  const Vector bounded = isa::larger(Vector{} - 88.0f, x);  // e^88 is finite
  return x / (power_of_two<T>(bounded * -kLog2E) + 1.0f);
}

}  // namespace core
