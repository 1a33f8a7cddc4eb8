// Paged attention for sequences with one new token: no gather, one pass over keys and values.
//
// The query heads of a group share each load of a key or value. Tokens are lanes while keys are scored, elements of a
// head while values are added up. A long sequence is cut in pieces, which are merged by whoever finishes last.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "attention_prompt.h"
#include "pages.h"
#include "step.h"
#include "units.h"
#include "workspace.h"

namespace core {

constexpr int64_t kPieceKeys = 256;  // of a sequence that are one task at most; pieces begin at its multiples

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

// The unit at `index` of a row of elements.
template <typename T>
inline uint32_t unit_at(const T* row, int64_t index) {
  uint32_t unit;
  std::memcpy(&unit, row + index * kPerUnit<T>, sizeof(unit));
  return unit;
}

// Scores of 16 tokens, a lane each, with the keys of HEADS query heads. query  [HEADS][dim], keys  [units][stride]
//
// Meanwhile brings the tokens' values, and later tokens' keys at `next`, closer: blocks lie anywhere in memory,
// which no processor foresees. One line at a time; all at once would hold up the loads behind them.
template <int HEADS, typename T>
inline void score_tokens(const T* query, const uint32_t* keys, const uint32_t* values, const uint32_t* next,
                         int64_t stride, int64_t dim, Vector* scores) {
  constexpr int kParts = kLanes / kFloats, kChains = HEADS > 2 ? 2 : 4;  // sums enough to hide an addition's latency
  isa::Floats sums[kChains][HEADS][kParts] = {};
  for (int64_t u = 0; u < dim / kPerUnit<T>; u += kChains)
    for (int c = 0; c < kChains; ++c) {
      __builtin_prefetch(values + (u + c) * kLanes, 0, 2);
      __builtin_prefetch(next + (u + c) * stride, 0, 2);
      isa::Words key[kParts];
      for (int p = 0; p < kParts; ++p) key[p] = vector_from<isa::Words>(keys + (u + c) * stride + p * kFloats);
      for (int h = 0; h < HEADS; ++h) {
        const isa::Words one = isa::Words{} + unit_at(query + h * dim, u + c);
        for (int p = 0; p < kParts; ++p) sums[c][h][p] = multiply_add<T>(sums[c][h][p], key[p], one);
      }
    }
  for (int h = 0; h < HEADS; ++h) {
    for (int c = 1; c < kChains; ++c)
      for (int p = 0; p < kParts; ++p) sums[0][h][p] += sums[c][h][p];
    std::memcpy(&scores[h], sums[0][h], sizeof(Vector));
  }
}

// The softmax of one head over its tiles: scores become weights.
template <typename T>
inline void weigh_tokens(const Vector* scores, int64_t tiles, float scale, T* weights, float& maximum, float& total) {
  Vector most = Vector{} + kNothing, sums = {};
  for (int64_t i = 0; i < tiles; ++i) most = scores[i] > most ? scores[i] : most;
  float highest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) highest = std::max<float>(highest, most[lane]);
  maximum = highest * scale;
  for (int64_t i = 0; i < tiles; ++i) {
    const Vector weight = power_of_two<T>(scores[i] * scale - maximum);
    sums += weight;
    put(weights + i * kLanes, weight);
  }
  total = sum(sums);
}

// Some tokens of a tile of 16: lanes from `low` up to `high`.
struct Lanes {
  int32_t low, high;

  Vector hide(const Vector& scores) const {
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return ((lane >= low) & (lane < high)) ? scores : Vector{} + kNothing;
  }
};

// sums [HEADS][VECTORS] += weights * values, for the tokens of a tile. weights  [HEADS][stride], values  [units][dim]
//
// A unit at the edge may hold half a token that was never written: it is cleared, for its weight is 0, and 0 times
// anything must be 0.
template <int HEADS, int VECTORS, typename T>
inline void add_tokens(const T* weights, int64_t stride, const uint32_t* values, int64_t dim, const Lanes& lanes,
                       isa::Floats (&sums)[HEADS][VECTORS]) {
  constexpr int64_t kUnit = kPerUnit<T>;
  const auto add = [&](int64_t u, uint32_t mask) {
    isa::Words value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) value[v] = vector_from<isa::Words>(values + u * dim + v * kFloats) & mask;
    for (int h = 0; h < HEADS; ++h) {
      const isa::Words one = isa::Words{} + unit_at(weights + h * stride, u);
      for (int v = 0; v < VECTORS; ++v) sums[h][v] = multiply_add<T>(sums[h][v], value[v], one);
    }
  };
  int64_t u = lanes.low / kUnit;
  const int64_t end = lanes.high / kUnit;
  if (lanes.low % kUnit && u < end) add(u++, 0xffff0000u);
  for (; u < end; ++u) add(u, ~0u);
  if (lanes.high % kUnit) add(u, 0x0000ffffu);
}

constexpr int64_t kPieceTiles = kPieceKeys / kLanes;
constexpr int64_t kAhead = 2;  // tiles

// One piece of a sequence's keys for HEADS of its heads.
template <int HEADS, typename T>
struct Piece {
  Piece(const Pages<T>& pages, int64_t first, int64_t end) : pages(pages), first(first), end(end) {}

  const Pages<T>& pages;
  const int64_t first, end;  // positions
  Vector scores[HEADS][kPieceTiles];
  alignas(64) T weights[HEADS][kPieceKeys];

  int64_t start() const { return first / kLanes * kLanes; }
  int64_t tiles() const { return (end - start() + kLanes - 1) / kLanes; }
  int64_t position(int64_t tile) const { return start() + tile * kLanes; }
  Lanes lanes(int64_t tile) const {
    const int64_t at = position(tile);
    return {static_cast<int32_t>(std::max<int64_t>(0, first - at)),
            static_cast<int32_t>(std::min<int64_t>(kLanes, end - at))};
  }

  void score(const T* query) {
    for (int64_t i = 0; i < tiles(); ++i) {
      Vector found[HEADS];
      const uint32_t* next = pages.keys_at(position(std::min(i + kAhead, tiles() - 1)));
      score_tokens<HEADS>(query, pages.keys_at(position(i)), pages.values_at(position(i)), next, pages.block_size,
                          pages.dim, found);
      for (int h = 0; h < HEADS; ++h) scores[h][i] = lanes(i).hide(found[h]);
    }
  }

  // The elements of the heads' sums from d on, as many as VECTORS hold.
  template <int VECTORS>
  void sum_values(int64_t d, float* sums) const {
    isa::Floats part[HEADS][VECTORS] = {};
    for (int64_t i = 0; i < tiles(); ++i)
      add_tokens<HEADS, VECTORS>(&weights[0][i * kLanes], kPieceKeys, pages.values_at(position(i)) + d, pages.dim,
                                 lanes(i), part);
    for (int h = 0; h < HEADS; ++h)
      for (int v = 0; v < VECTORS; ++v)
        std::memcpy(sums + h * pages.dim + d + v * kFloats, &part[h][v], sizeof(isa::Floats));
  }
};

// Heads are taken as many at a time as leave the registers room.
template <int HEADS, typename T>
inline int64_t take_heads(int64_t h, int64_t group, const T* query, const Pages<T>& pages, float scale, int64_t first,
                          int64_t count, const Partial& result) {
  constexpr int kVectors = isa::kWidth == 32 ? 2 : 4;
  const int64_t dim = pages.dim;
  for (; h + HEADS <= group; h += HEADS) {
    Piece<HEADS, T> piece(pages, first, first + count);
    piece.score(query + h * dim);
    for (int i = 0; i < HEADS; ++i)
      weigh_tokens(piece.scores[i], piece.tiles(), scale, piece.weights[i], result.maxima[h + i],
                   result.totals[h + i]);
    int64_t d = 0;
    for (; d + kVectors * kFloats <= dim; d += kVectors * kFloats)
      piece.template sum_values<kVectors>(d, result.sums + h * dim);
    for (; d < dim; d += kFloats) piece.template sum_values<1>(d, result.sums + h * dim);
  }
  return h;
}

// The heads of one group against the keys [first, first + count) of their sequence, a piece at most. query
// [group][dim]; scale is that of powers of two.
template <typename T>
void attend_tokens(const T* query, const Pages<T>& pages, int64_t group, float scale, int64_t first, int64_t count,
                   const Partial& result) {
  int64_t h = take_heads<4>(0, group, query, pages, scale, first, count, result);
  h = take_heads<3>(h, group, query, pages, scale, first, count, result);
  h = take_heads<2>(h, group, query, pages, scale, first, count, result);
  take_heads<1>(h, group, query, pages, scale, first, count, result);
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
  for (int64_t h = 0; h < group; ++h)
    for (int64_t d = h * dim; d < (h + 1) * dim; d += kLanes)
      store(output + d, load(result.sums + d) / result.totals[h]);
}

}  // namespace core
