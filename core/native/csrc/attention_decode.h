// Paged attention for sequences with one new token: no gather, one pass over keys and values.
//
// The query heads of a group share each load of a key or value. Tokens are lanes while keys are scored, elements of a
// head while values are added up. A long sequence is cut in pieces, which are merged by whoever finishes last.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>

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

// Scores of 16 tokens, a lane each, with the keys of HEADS query heads. query  [HEADS][dim]
//
// Meanwhile brings the tokens' values, and later tokens' keys at `next`, closer: blocks lie anywhere in memory,
// which no processor foresees. One line at a time; all at once would hold up the loads behind them.
template <int HEADS, typename T, typename S>
inline void score_tokens(const T* query, const Units<T, S>& keys, const Units<T, S>& values, const Units<T, S>& next,
                         int64_t dim, Vector* scores) {
  constexpr int kParts = kLanes / kFloats, kChains = HEADS > 2 ? 2 : 4;  // sums enough to hide an addition's latency
  constexpr int kMade = Units<T, S>::kMade, kRows = kChains > kMade ? kChains / kMade : 1;
  isa::Floats sums[kChains][HEADS][kParts] = {};
  for (int64_t r = 0; r < dim / kPerUnit<S>; r += kRows)
    for (int c = 0; c < kRows; ++c) {
      __builtin_prefetch(values.from + (r + c) * kLanes, 0, 2);
      __builtin_prefetch(next.from + (r + c) * next.stride, 0, 2);
      typename Units<T, S>::Made key[kParts];
      for (int p = 0; p < kParts; ++p) key[p] = keys.at(r + c, p * kFloats);
      for (int i = 0; i < kMade; ++i)
        for (int h = 0; h < HEADS; ++h) {
          const isa::Words one = isa::Words{} + unit_at(query + h * dim, (r + c) * kMade + i);
          auto& sum = sums[(c * kMade + i) % kChains][h];
          for (int p = 0; p < kParts; ++p) sum[p] = multiply_add<T>(sum[p], key[p].unit[i], one);
        }
    }
  for (int h = 0; h < HEADS; ++h) {
    for (int c = 1; c < kChains; ++c)
      for (int p = 0; p < kParts; ++p) sums[0][h][p] += sums[c][h][p];
    std::memcpy(&scores[h], sums[0][h], sizeof(Vector));
  }
}

// The softmax of one head over its tiles: scores become weights, and scaled(tile, weights) is what they multiply with.
template <typename T, typename F>
inline void weigh_tokens(const Vector* scores, int64_t tiles, float scale, F scaled, T* weights, float& maximum,
                         float& total) {
  Vector most = Vector{} + kNothing, sums = {};
  for (int64_t i = 0; i < tiles; ++i) most = scores[i] > most ? scores[i] : most;
  float highest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) highest = std::max<float>(highest, most[lane]);
  maximum = highest * scale;
  for (int64_t i = 0; i < tiles; ++i) {
    const Vector weight = power_of_two<T>(scores[i] * scale - maximum);
    sums += weight;
    put(weights + i * kLanes, scaled(i, weight));
  }
  total = sum(sums);
}

// sums [HEADS][VECTORS] += weights * values, from element d on, for the tokens of a tile. weights  [HEADS][stride]
//
// A unit at the edge may hold half a token that was never written: it is cleared, for its weight is 0, and 0 times
// anything must be 0.
template <int HEADS, int VECTORS, typename T, typename S>
inline void add_tokens(const T* weights, int64_t stride, const Units<T, S>& values, int64_t d, const Lanes& lanes,
                       isa::Floats (&sums)[HEADS][VECTORS]) {
  constexpr int64_t kUnit = kPerUnit<S>;
  constexpr int kMade = Units<T, S>::kMade;
  const auto add = [&](int64_t r, uint32_t mask) {
    typename Units<T, S>::Made value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) value[v] = values.at(r, d + v * kFloats);
    for (int i = 0; i < kMade; ++i)
      for (int h = 0; h < HEADS; ++h) {
        const isa::Words one = isa::Words{} + unit_at(weights + h * stride, r * kMade + i);
        for (int v = 0; v < VECTORS; ++v) sums[h][v] = multiply_add<T>(sums[h][v], value[v].unit[i] & mask, one);
      }
  };
  int64_t r = lanes.low / kUnit;
  const int64_t end = lanes.high / kUnit;
  const bool clear = std::is_same_v<S, T>;  // whole numbers are finite whatever was in memory
  if (clear && lanes.low % kUnit && r < end) add(r++, 0xffff0000u);
  for (; r < end; ++r) add(r, ~0u);
  if (lanes.high % kUnit) add(r, clear ? 0x0000ffffu : ~0u);
}

constexpr int64_t kPieceTiles = kPieceKeys / kLanes;

// One piece of a sequence's keys, stored as S, for HEADS of its heads.
template <int HEADS, typename T, typename S>
struct Piece {
  static constexpr bool kScaled = !std::is_same_v<S, T>;
  static constexpr int64_t kAhead = 2 * sizeof(T) / sizeof(S);  // tiles that keys are brought closer before their time

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
      Vector found[HEADS], scales = {};
      const int64_t at = position(i), later = position(std::min(i + kAhead, tiles() - 1));
      if constexpr (kScaled) {
        scales = load(pages.key_scales(at));
        __builtin_prefetch(pages.value_scales(at), 0, 2);
        __builtin_prefetch(pages.key_scales(later), 0, 2);
      }
      score_tokens<HEADS>(query, pages.template keys_at<S>(at), pages.template values_at<S>(at),
                          pages.template keys_at<S>(later), pages.dim, found);
      for (int h = 0; h < HEADS; ++h) scores[h][i] = lanes(i).only(kScaled ? found[h] * scales : found[h], kNothing);
    }
  }

  // The softmax of head h. A scale that was never written must not meet even a weight of 0.
  void weigh(int h, float scale, float& maximum, float& total) {
    const auto scaled = [&](int64_t i, const Vector& weight) {
      if constexpr (kScaled) return lanes(i).only(weight * load(pages.value_scales(position(i))), 0.0f);
      return weight;
    };
    weigh_tokens(scores[h], tiles(), scale, scaled, weights[h], maximum, total);
  }

  // The elements of the heads' sums from d on, as many as VECTORS hold.
  template <int VECTORS>
  void sum_values(int64_t d, float* sums) const {
    isa::Floats part[HEADS][VECTORS] = {};
    for (int64_t i = 0; i < tiles(); ++i)
      add_tokens<HEADS, VECTORS>(&weights[0][i * kLanes], kPieceKeys, pages.template values_at<S>(position(i)), d,
                                 lanes(i), part);
    for (int h = 0; h < HEADS; ++h)
      for (int v = 0; v < VECTORS; ++v)
        std::memcpy(sums + h * pages.dim + d + v * kFloats, &part[h][v], sizeof(isa::Floats));
  }
};

// Heads are taken as many at a time as leave the registers room.
template <int HEADS, typename S, typename T>
inline int64_t take_heads(int64_t h, int64_t group, const T* query, const Pages<T>& pages, float scale, int64_t first,
                          int64_t count, const Partial& result) {
  constexpr int kVectors = isa::kWidth == 32 || Units<T, S>::kMade > 2 ? 2 : 4;
  const int64_t dim = pages.dim;
  for (; h + HEADS <= group; h += HEADS) {
    Piece<HEADS, T, S> piece(pages, first, first + count);
    piece.score(query + h * dim);
    for (int i = 0; i < HEADS; ++i) piece.weigh(i, scale, result.maxima[h + i], result.totals[h + i]);
    int64_t d = 0;
    for (; d + kVectors * kFloats <= dim; d += kVectors * kFloats)
      piece.template sum_values<kVectors>(d, result.sums + h * dim);
    for (; d < dim; d += kFloats) piece.template sum_values<1>(d, result.sums + h * dim);
  }
  return h;
}

template <typename S, typename T>
void attend_stored(const T* query, const Pages<T>& pages, int64_t group, float scale, int64_t first, int64_t count,
                   const Partial& result) {
  int64_t h = take_heads<4, S>(0, group, query, pages, scale, first, count, result);
  h = take_heads<3, S>(h, group, query, pages, scale, first, count, result);
  h = take_heads<2, S>(h, group, query, pages, scale, first, count, result);
  take_heads<1, S>(h, group, query, pages, scale, first, count, result);
}

// The heads of one group against the keys [first, first + count) of their sequence, a piece at most. query
// [group][dim]; scale is that of powers of two.
template <typename T>
void attend_tokens(const T* query, const Pages<T>& pages, int64_t group, float scale, int64_t first, int64_t count,
                   const Partial& result) {
  if (pages.quantized) return attend_stored<uint8_t>(query, pages, group, scale, first, count, result);
  attend_stored<T>(query, pages, group, scale, first, count, result);
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
