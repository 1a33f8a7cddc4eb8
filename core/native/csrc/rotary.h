// Rotary position embedding, the half-split form, of one head at a time. Source: RoFormer, Su et al. 2021.
//
// And the norm before it, of models that have one.

#pragma once

#include <cstdint>

#include "norm.h"
#include "units.h"

namespace core {

// Rotates element i of a head with element i + half; `to` may be `head`. What lies behind 2 * half stays.
template <typename T>
inline void rotate(const T* head, const T* cos, const T* sin, int64_t half, int64_t dim, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vector a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
    put(to + i, a * c - b * s);
    put(to + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = widen(head[i]), b = widen(head[half + i]), c = widen(cos[i]), s = widen(sin[i]);
    to[i] = narrow<T>(a * c - b * s);
    to[half + i] = narrow<T>(b * c + a * s);
  }
  if (to != head)
    for (i = 2 * half; i < dim; ++i) to[i] = head[i];
}

// What a step does to heads between their projection and attention. cos, sin [rows, half]
template <typename T>
struct Rotation {
  const T *cos, *sin;
  int64_t half, dim;
  float eps;

  // norm  weight [dim], or null. `to` is not `head`.
  void apply(const T* head, const T* norm, int64_t row, T* to) const {
    if (norm != nullptr) {
      normalize(head, norm, eps, dim, to);
      head = to;
    }
    rotate(head, cos + row * half, sin + row * half, half, dim, to);
  }
};

}  // namespace core
