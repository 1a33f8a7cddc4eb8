// Vectors of 16 lanes in the compiler's own types, so that any target can build what is written in them, and
// the conversions between float and bfloat16. Knows no instruction set.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace core {

constexpr int kLanes = 16;
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// bfloat16 is the upper half of a float. A type of its own, so that overloads can tell it from an integer.
struct bfloat16 {
  uint16_t bits;
};

template <typename To, typename From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline Vector load(const bfloat16* from) {
  Halves h;
  std::memcpy(&h, from, sizeof(h));
  return bits_of<Vector>(__builtin_convertvector(h, Bits) << 16);
}

inline void store(float* to, const Vector& v) { std::memcpy(to, &v, sizeof(v)); }

inline void store(bfloat16* to, const Vector& v) {
  Bits b = bits_of<Bits>(v);
  b += 0x7fffu + ((b >> 16) & 1u);  // round to nearest, ties to even
  const Halves h = __builtin_convertvector(b >> 16, Halves);
  std::memcpy(to, &h, sizeof(h));
}

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { return bits_of<float>(uint32_t{x.bits} << 16); }

template <typename T>
T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline bfloat16 narrow<bfloat16>(float x) {
  uint32_t b = bits_of<uint32_t>(x);
  b += 0x7fffu + ((b >> 16) & 1u);
  return {static_cast<uint16_t>(b >> 16)};
}

inline float sum(const Vector& v) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight halves[2];
  std::memcpy(halves, &v, sizeof(v));
  const Eight eight = halves[0] + halves[1];
  Four quarters[2];
  std::memcpy(quarters, &eight, sizeof(eight));
  const Four four = quarters[0] + quarters[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace core
