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

// Begins to bring memory closer that is read soon; it need not exist.
inline void bring_closer(const void* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(at) + i);
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

// A unit of `even` and `odd`, rounded to the nearest; of `even` alone where a unit is one float.
template <typename T>
inline Bits unit_of(const Vector& even, const Vector& odd) {
  if constexpr (kPerUnit<T> == 1) return bits_of<Bits>(even);
  return isa::to_pairs(even, odd);
}

}  // namespace core
