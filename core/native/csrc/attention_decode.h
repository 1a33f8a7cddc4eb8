// Paged attention for sequences with one new token: no gather, one pass over keys and values.
//
// The query heads of a group share each load of a key or value; lanes are elements of a head. Scores of up to 16
// tokens become one vector; the softmax is online. A long sequence can be cut in pieces, which are merged by whoever
// finishes last.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "attention_prompt.h"
#include "step.h"
#include "units.h"
#include "workspace.h"

namespace core {

// Whether products are made of pairs of bfloat16, in one instruction each. Sums of values then lie in the order in
// which pairs are interleaved, until they are stored.
template <typename T>
inline bool in_pairs(int64_t dim) {
  return sizeof(T) == 2 && isa::kWidth == 64 && dim % (2 * kLanes) == 0;
}

// What some keys gave the heads of a group: maxima and totals [group], sums [group][dim].
struct Partial {
  float* maxima;
  float* totals;
  float* sums;
};

inline int64_t partial_floats(int64_t group, int64_t dim) { return group * (dim + 2 * kLanes); }

inline Partial partial_at(float* memory, int64_t group) {
  return {memory, memory + group * kLanes, memory + 2 * group * kLanes};
}

// Of four vectors, in each quarter of the result: the sums over that quarter's lanes.
inline Vector sum_quarters(const Vector& a, const Vector& b, const Vector& c, const Vector& d) {
  const auto fold = [](const Vector& x, const Vector& y) {
    return shuffled<0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29>(x, y) +
           shuffled<2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31>(x, y);
  };
  const Vector ab = fold(a, b), cd = fold(c, d);
  return shuffled<0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29>(ab, cd) +
         shuffled<2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31>(ab, cd);
}

// The quarters of four vectors added up, one after the other: with `sum_quarters`, the sums of 16 vectors.
inline Vector join_quarters(const Vector& a, const Vector& b, const Vector& c, const Vector& d) {
  const auto fold = [](const Vector& x, const Vector& y) {
    return shuffled<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(x, y) +
           shuffled<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(x, y);
  };
  const Vector ab = fold(a, b), cd = fold(c, d);
  return shuffled<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(ab, cd) +
         shuffled<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(ab, cd);
}

// Brings a token's key or value closer, into the second cache: blocks lie anywhere, which no prefetcher foresees. One
// token at a time between products; all at once would hold up the loads behind them.
template <typename T>
inline void fetch(const T* row, int64_t elements) {
  for (int64_t i = 0; i < elements; i += 64 / int64_t{sizeof(T)}) __builtin_prefetch(row + i, 0, 2);
}

// What products are made of: 16 elements as floats, or 32 as pairs.
inline void take(const float* from, Vector& to) { to = load(from); }
inline void take(const bfloat16* from, Vector& to) { to = load(from); }
template <typename T>
inline void take(const T* from, Bits& to) {
  std::memcpy(&to, from, sizeof(to));
}

// Adds the products of 4 rows with each head's query.
template <int HEADS, typename V, typename T, typename F>
inline void multiply_rows(const T* query, const T* const (&rows)[4], int64_t dim, Vector (&dots)[4][HEADS],
                          F multiply_add) {
  constexpr int64_t kStep = std::is_same<V, Vector>::value ? kLanes : 2 * kLanes;
  for (int64_t d = 0; d < dim; d += kStep) {
    V key[4], head;
    for (int t = 0; t < 4; ++t) take(rows[t] + d, key[t]);
    for (int h = 0; h < HEADS; ++h) {
      take(query + h * dim + d, head);
      for (int t = 0; t < 4; ++t) dots[t][h] = multiply_add(dots[t][h], head, key[t]);
    }
  }
}

// Scores of up to 16 tokens, whose keys follow each other, against HEADS query heads: a lane per token. Lanes from
// `count` on repeat the last token.
template <int HEADS, typename T>
inline void score_tokens(const T* query, const T* keys, const T* ahead, int64_t count, int64_t dim,
                         Vector* scores) {
  constexpr int kTokens = 4;
  Vector quarters[4][HEADS];
  for (int q = 0; q < 4; ++q) {
    if (q * kTokens >= count) {
      for (int h = 0; h < HEADS; ++h) quarters[q][h] = Vector{};
      continue;
    }
    const T* rows[kTokens];
    for (int t = 0; t < kTokens; ++t) rows[t] = keys + std::min<int64_t>(q * kTokens + t, count - 1) * dim;
    if (ahead != nullptr)
      for (int t = 0; t < kTokens; ++t) fetch(ahead + (q * kTokens + t) * dim, dim);
    Vector dots[kTokens][HEADS] = {};
    if (in_pairs<T>(dim)) {
      multiply_rows<HEADS, Bits>(query, rows, dim, dots, dot_pairs<Vector>);
    } else {
      multiply_rows<HEADS, Vector>(query, rows, dim, dots,
                                   [](const Vector& sum, const Vector& a, const Vector& b) { return sum + a * b; });
    }
    for (int h = 0; h < HEADS; ++h) quarters[q][h] = sum_quarters(dots[0][h], dots[1][h], dots[2][h], dots[3][h]);
  }
  for (int h = 0; h < HEADS; ++h)
    scores[h] = join_quarters(quarters[0][h], quarters[1][h], quarters[2][h], quarters[3][h]);
}

inline float largest(const Vector& v) {
  typedef float Four __attribute__((vector_size(16)));
  Four quarters[4];
  std::memcpy(quarters, &v, sizeof(v));
  const Four a = quarters[0] > quarters[1] ? quarters[0] : quarters[1];
  const Four b = quarters[2] > quarters[3] ? quarters[2] : quarters[3];
  const Four c = a > b ? a : b;
  return std::max(std::max(c[0], c[1]), std::max(c[2], c[3]));
}

// The online softmax of one head: scores become weights; returns what earlier sums shrink by.
template <typename T>
inline float weigh_tokens(Vector& scores, int64_t count, float scale, float& maximum, float& total) {
  const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto seen = lane < static_cast<int32_t>(count);
  scores = seen ? scores * scale : Vector{} + kNothing;
  const float highest = std::max(maximum, largest(scores));
  const float shrink = highest != maximum ? std::exp2(maximum - highest) : 1.0f;
  scores = seen ? power_of_two<T>(scores - highest) : Vector{};
  maximum = highest;
  total = total * shrink + sum(scores);
  return shrink;
}

// sums [HEADS][dim] = sums * shrink + weights * values, VECTORS of a head at a time.
template <int HEADS, int VECTORS, typename T>
inline void add_tokens(const float (*weights)[kLanes], const float* shrink, const T* values, const T* ahead,
                       int64_t count, int64_t dim, float* sums) {
  Vector part[HEADS][VECTORS];
  for (int h = 0; h < HEADS; ++h)
    for (int v = 0; v < VECTORS; ++v) part[h][v] = load(sums + h * dim + v * kLanes) * shrink[h];
  for (int64_t t = 0; t < count; ++t) {
    if (ahead != nullptr) fetch(ahead + t * dim, VECTORS * kLanes);
    for (int v = 0; v < VECTORS; ++v) {
      const Vector value = load(values + t * dim + v * kLanes);
      for (int h = 0; h < HEADS; ++h) part[h][v] += value * weights[h][t];
    }
  }
  for (int h = 0; h < HEADS; ++h)
    for (int v = 0; v < VECTORS; ++v) store(sums + h * dim + v * kLanes, part[h][v]);
}

// The same for values in pairs of tokens, 32 elements of them interleaved into two vectors of units.
template <int HEADS, int TWICE>
inline void add_pairs(const float (*weights)[kLanes], const float* shrink, const bfloat16* values,
                      const bfloat16* ahead, int64_t count, int64_t dim, float* sums) {
  alignas(32) uint32_t pairs[HEADS][kLanes / 2];
  Vector part[HEADS][2 * TWICE];
  for (int h = 0; h < HEADS; ++h) {
    const Halves narrowed = isa::to_bfloat16(load(weights[h]));
    std::memcpy(pairs[h], &narrowed, sizeof(narrowed));
    for (int v = 0; v < 2 * TWICE; ++v) part[h][v] = load(sums + h * dim + v * kLanes) * shrink[h];
  }
  for (int64_t t = 0; t < count; t += 2) {
    if (ahead != nullptr) {
      fetch(ahead + t * dim, TWICE * 2 * kLanes);
      fetch(ahead + (t + 1) * dim, TWICE * 2 * kLanes);
    }
    for (int v = 0; v < TWICE; ++v) {
      Elements even, odd = {};  // what lies behind the last token may be anything
      std::memcpy(&even, values + t * dim + v * 2 * kLanes, sizeof(even));
      if (t + 1 < count) std::memcpy(&odd, values + (t + 1) * dim + v * 2 * kLanes, sizeof(odd));
      const Elements units[2] = {
          shuffled<0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48, 17, 49, 18, 50, 19, 51, 24, 56, 25,
                   57, 26, 58, 27, 59>(even, odd),
          shuffled<4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20, 52, 21, 53, 22, 54, 23, 55, 28, 60,
                   29, 61, 30, 62, 31, 63>(even, odd)};
      for (int i = 0; i < 2; ++i)
        for (int h = 0; h < HEADS; ++h)
          part[h][2 * v + i] = dot_pairs(part[h][2 * v + i], bits_of<Bits>(units[i]), Bits{} + pairs[h][t / 2]);
    }
  }
  for (int h = 0; h < HEADS; ++h)
    for (int v = 0; v < 2 * TWICE; ++v) store(sums + h * dim + v * kLanes, part[h][v]);
}

// Up to 16 tokens whose keys and values follow each other, and as many that come later.
template <typename T>
struct Run {
  const T *keys, *values;
  const T *keys_ahead, *values_ahead;  // null where there are none
  int64_t count, dim;
};

// The values of a run to the sums of some heads, as many elements at a time as leave the registers room.
template <int HEADS, typename T>
inline void add_run(const float (*weights)[kLanes], const float* shrink, const Run<T>& run, const T* ahead,
                    float* sums) {
  const auto add = [&](auto function, int64_t d) {
    function(weights, shrink, run.values + d, ahead == nullptr ? nullptr : ahead + d, run.count, run.dim, sums + d);
  };
  int64_t d = 0;
  if constexpr (sizeof(T) == 2)
    if (in_pairs<T>(run.dim)) {
      for (; d + 4 * kLanes <= run.dim; d += 4 * kLanes) add(add_pairs<HEADS, 2>, d);
      for (; d < run.dim; d += 2 * kLanes) add(add_pairs<HEADS, 1>, d);
      return;
    }
  for (; d + 4 * kLanes <= run.dim; d += 4 * kLanes) add(add_tokens<HEADS, 4, T>, d);
  for (; d < run.dim; d += kLanes) add(add_tokens<HEADS, 1, T>, d);
}

// Heads are taken as many at a time as leave the registers room; the tile of keys stays in the first cache.
template <int HEADS, typename T>
inline int64_t take_heads(int64_t h, int64_t group, const T* query, float scale, const Run<T>& run,
                          const Partial& result) {
  const int64_t count = run.count, dim = run.dim;
  for (; h + HEADS <= group; h += HEADS) {
    Vector scores[HEADS];
    alignas(64) float weights[HEADS][kLanes];
    float shrink[HEADS];
    const T* keys_ahead = h == 0 ? run.keys_ahead : nullptr;
    const T* values_ahead = h == 0 ? run.values_ahead : nullptr;
    score_tokens<HEADS>(query + h * dim, run.keys, keys_ahead, count, dim, scores);
    for (int i = 0; i < HEADS; ++i) {
      shrink[i] = weigh_tokens<T>(scores[i], count, scale, result.maxima[h + i], result.totals[h + i]);
      store(weights[i], scores[i]);
    }
    add_run<HEADS>(weights, shrink, run, values_ahead, result.sums + h * dim);
  }
  return h;
}

// The heads of one group against the keys [first, first + count) of their sequence. query [group][dim].
template <typename T>
void attend_tokens(const T* query, float scale, const Pages<T>& pages, int64_t group, int64_t first, int64_t count,
                   const Partial& result) {
  const int64_t dim = pages.dim, end = first + count;
  for (int64_t h = 0; h < group; ++h) {
    result.maxima[h] = kNothing;
    result.totals[h] = 0.0f;
  }
  std::fill(result.sums, result.sums + group * dim, 0.0f);
  Run<T> run = {nullptr, nullptr, nullptr, nullptr, 0, dim};
  for (int64_t position = first; position < end; position += run.count) {
    run.count = std::min({pages.block_size - position % pages.block_size, int64_t{kLanes}, end - position});
    const int64_t at = pages.at(position), later = position + kLanes;
    const int64_t ahead = later + kLanes <= end ? pages.at(later) : 0;
    run.keys = pages.keys + at;
    run.values = pages.values + at;
    run.keys_ahead = ahead == 0 ? nullptr : pages.keys + ahead;
    run.values_ahead = ahead == 0 ? nullptr : pages.values + ahead;
    int64_t h = take_heads<4>(0, group, query, scale, run, result);
    h = take_heads<3>(h, group, query, scale, run, result);
    h = take_heads<2>(h, group, query, scale, run, result);
    take_heads<1>(h, group, query, scale, run, result);
  }
}

// Adds what further keys gave to what the first ones gave.
inline void merge(const Partial& into, const Partial& from, int64_t group, int64_t dim) {
  for (int64_t h = 0; h < group; ++h) {
    const float highest = std::max(into.maxima[h], from.maxima[h]);
    const float a = std::exp2(into.maxima[h] - highest), b = std::exp2(from.maxima[h] - highest);
    into.totals[h] = into.totals[h] * a + from.totals[h] * b;
    into.maxima[h] = highest;
    for (int64_t d = h * dim; d < (h + 1) * dim; ++d) into.sums[d] = into.sums[d] * a + from.sums[d] * b;
  }
}

template <typename T>
inline void store_tokens(const Partial& result, int64_t group, int64_t dim, T* output) {
  for (int64_t h = 0; h < group; ++h) {
    const float part = 1.0f / result.totals[h];
    const float* sums = result.sums + h * dim;
    int64_t d = 0;
    if (in_pairs<T>(dim))
      for (; d < dim; d += 2 * kLanes) {
        const Vector a = load(sums + d), b = load(sums + d + kLanes);
        put(output + h * dim + d,
              part * shuffled<0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23>(a, b));
        put(output + h * dim + d + kLanes,
              part * shuffled<8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31>(a, b));
      }
    for (; d < dim; d += kLanes) put(output + h * dim + d, load(sums + d) * part);
  }
}

}  // namespace core
