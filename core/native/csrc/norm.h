// Root-mean-square norms of rows of any width, and the addition before them. Rounds as core/reference/norm.py does.

#pragma once

#include <cmath>
#include <cstdint>

#include "units.h"

namespace core {

// What rounding to T and back makes of v.
template <typename T>
inline Vector rounded(const Vector& v) {
  if constexpr (sizeof(T) == sizeof(float)) return v;
  T narrowed[kLanes];
  put(narrowed, v);
  return load(narrowed);
}

template <typename T>
inline float sum_of_squares(const T* x, int64_t width) {
  Vector squares[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes)
    for (int j = 0; j < 2; ++j) {
      const Vector v = load(x + i + j * kLanes);
      squares[j] += v * v;
    }
  float rest = 0.0f;
  for (; i + kLanes <= width; i += kLanes) {
    const Vector v = load(x + i);
    squares[0] += v * v;
  }
  for (; i < width; ++i) rest += widen(x[i]) * widen(x[i]);
  return sum(squares[0] + squares[1]) + rest;
}

// y = round(x / root of the mean of squares) * weight; y may be x.
template <typename T>
inline void normalize(const T* x, const T* weight, float eps, int64_t width, T* y) {
  const float factor = 1.0f / std::sqrt(sum_of_squares(x, width) / static_cast<float>(width) + eps);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) put(y + i, load(weight + i) * rounded<T>(load(x + i) * factor));
  for (; i < width; ++i) y[i] = narrow<T>(widen(weight[i]) * widen(narrow<T>(widen(x[i]) * factor)));
}

// total = round(x + y); total may be x or y.
template <typename T>
inline void add(const T* x, const T* y, int64_t width, T* total) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) put(total + i, load(x + i) + load(y + i));
  for (; i < width; ++i) total[i] = narrow<T>(widen(x[i]) + widen(y[i]));
}

}  // namespace core
