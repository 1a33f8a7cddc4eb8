// Paged attention for sequences with several new tokens.
//
// Rows are pairs of a new token and a query head of one group, and rows are lanes: scores, the softmax and the sums
// of values run down the lanes without a sum across them. Keys are taken a tile at a time, copied out of their
// blocks, by up to kTaskRows rows. Both products are made in units of four bytes. The softmax is online (Milakov and
// Gimelshein 2018); after FlashAttention, Dao et al. 2022.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "exponential.h"
#include "pages.h"
#include "step.h"
#include "units.h"
#include "workspace.h"

namespace core {

constexpr int64_t kTileKeys = 64;
constexpr int64_t kChunk = 3 * kLanes;       // rows that are worked on together
constexpr int64_t kTaskRows = 8 * kChunk;    // rows that share a copy of the keys
constexpr int kTall = isa::kWidth == 64 ? 8 : 4;
constexpr float kNothing = -1e30f;  // the maximum of no scores: finite, so that it can be subtracted from itself

// One thread's memory for one task.
//
// queries  [chunks][units of a head][kChunk]
// keys     [units of a head][kTileKeys]
// values   [units of the tile][head_dim]
// key_scales, value_scales  [kTileKeys], of a quantised cache
// scores   [kTileKeys][kChunk], weights [units of the tile][kChunk]
// sums     [chunks][head_dim][kChunk]; maxima, totals, newest [chunks][kChunk]
template <typename T>
struct PromptScratch {
  PromptScratch(Parts& parts, const AttentionShape& shape) {
    const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim, units = dim / kPerUnit<T>;
    const int64_t rows = std::max(kTaskRows, (group + kChunk - 1) / kChunk * kChunk);
    queries = parts.take<uint32_t>(rows * units);
    keys = parts.take<uint32_t>(kTileKeys * units);
    values = parts.take<uint32_t>(kTileKeys / kPerUnit<T> * dim);
    key_scales = parts.take<float>(kTileKeys);
    value_scales = parts.take<float>(kTileKeys);
    scores = parts.take<float>(kTileKeys * kChunk);
    weights = parts.take<uint32_t>(kTileKeys / kPerUnit<T> * kChunk);
    sums = parts.take<float>(rows * dim);
    maxima = parts.take<float>(rows);
    totals = parts.take<float>(rows);
    newest = parts.take<int32_t>(rows);
  }

  uint32_t *queries, *keys, *values, *weights;
  float *key_scales, *value_scales, *scores, *sums, *maxima, *totals;
  int32_t* newest;
};

// kTall rows of `ones` times V vectors of lanes, summed over `steps` units, starting from what `sums` holds.
template <typename T, int V>
inline void multiply_units(const uint32_t* lanes, const uint32_t* ones, int64_t one_stride, int64_t step_stride,
                           int64_t steps, isa::Floats (&sums)[kTall][V]) {
  for (int64_t s = 0; s < steps; ++s) {
    isa::Words a[V];
    for (int v = 0; v < V; ++v) a[v] = vector_from<isa::Words>(lanes + s * kChunk + v * kFloats);
    for (int i = 0; i < kTall; ++i) {
      const isa::Words one = isa::Words{} + ones[i * one_stride + s * step_stride];
      for (int v = 0; v < V; ++v) sums[i][v] = multiply_add<T>(sums[i][v], a[v], one);
    }
  }
}

// What rows see of a tile: keys that exist, up to their own `newest`, and above newest - window.
struct Mask {
  const int32_t* newest;  // of the chunk, as positions
  int64_t start, end;     // positions of the tile's keys
  int64_t window;
  bool needed;
};

// Scores of V vectors of rows with `count` keys, and each row's largest. scales  of the keys, null where they have none
template <typename T, int V>
inline void score_rows(const uint32_t* queries, const uint32_t* keys, const float* scales, int64_t units,
                       int64_t count, const Mask& mask, float* scores, float* largest) {
  typedef isa::Ints Ints;
  const isa::Floats hidden = isa::Floats{} - INFINITY;
  const Ints end = Ints{} + static_cast<int32_t>(mask.end);
  isa::Floats most[V];
  for (int v = 0; v < V; ++v) most[v] = hidden;
  for (int64_t k = 0; k < count; k += kTall) {
    isa::Floats sums[kTall][V] = {};
    multiply_units<T, V>(queries, keys + k, 1, kTileKeys, units, sums);
    if (scales != nullptr)
      for (int i = 0; i < kTall; ++i)
        for (int v = 0; v < V; ++v) sums[i][v] *= scales[k + i];
    if (mask.needed)
      for (int v = 0; v < V; ++v) {
        const Ints newest = vector_from<Ints>(mask.newest + v * kFloats);
        const Ints oldest = newest - static_cast<int32_t>(mask.window > 0 ? mask.window : INT32_MAX);
        for (int i = 0; i < kTall; ++i) {
          const Ints key = Ints{} + static_cast<int32_t>(mask.start + k + i);
          sums[i][v] = ((key <= newest) & (key > oldest) & (key < end)) ? sums[i][v] : hidden;
        }
      }
    for (int i = 0; i < kTall; ++i)
      for (int v = 0; v < V; ++v) {
        most[v] = sums[i][v] > most[v] ? sums[i][v] : most[v];
        std::memcpy(scores + (k + i) * kChunk + v * kFloats, &sums[i][v], sizeof(isa::Floats));
      }
  }
  for (int v = 0; v < V; ++v) std::memcpy(largest + v * kFloats, &most[v], sizeof(isa::Floats));
}

// Scores become weights, times the scales of the values where they have any; `factors` is what earlier sums shrink by.
// All for 16 rows.
template <typename T>
inline void weigh_rows(const float* scores, const float* scales, int64_t count, float scale, const float* largest,
                       float* maxima, float* totals, float* factors, uint32_t* weights) {
  const Vector before = load(maxima), seen = load(largest) * scale;
  const Vector maximum = seen > before ? seen : before;
  const Vector factor = power_of_two<float>(before - maximum);
  Vector total = load(totals) * factor;
  for (int64_t k = 0; k < count; k += kPerUnit<T>) {
    Vector even = power_of_two<T>(load(scores + k * kChunk) * scale - maximum), odd = even;
    total += even;
    if (scales != nullptr) even *= scales[k];
    if constexpr (kPerUnit<T> == 2) {
      odd = power_of_two<T>(load(scores + (k + 1) * kChunk) * scale - maximum);
      total += odd;
      if (scales != nullptr) odd *= scales[k + 1];
    }
    store_bits(weights + k / kPerUnit<T> * kChunk, unit_of<T>(even, odd));
  }
  store(maxima, maximum);
  store(totals, total);
  store(factors, factor);
}

// sums [dim][kChunk] = sums * factors + weights * values, for V vectors of rows.
template <typename T, int V>
inline void add_values(const uint32_t* weights, const uint32_t* values, int64_t dim, int64_t count,
                       const float* factors, float* sums) {
  for (int64_t d = 0; d < dim; d += kTall) {
    isa::Floats part[kTall][V];
    for (int i = 0; i < kTall; ++i)
      for (int v = 0; v < V; ++v)
        part[i][v] = vector_from<isa::Floats>(sums + (d + i) * kChunk + v * kFloats) *
                     vector_from<isa::Floats>(factors + v * kFloats);
    multiply_units<T, V>(weights, values + d, 1, dim, count / kPerUnit<T>, part);
    for (int i = 0; i < kTall; ++i)
      for (int v = 0; v < V; ++v)
        std::memcpy(sums + (d + i) * kChunk + v * kFloats, &part[i][v], sizeof(isa::Floats));
  }
}

// One chunk against one tile. V vectors of the processor at a time; together they hold 16 * SIXTEENS rows.
template <typename T, int V, int SIXTEENS>
void attend_chunk(const PromptScratch<T>& scratch, int64_t chunk, int64_t dim, int64_t count, float scale, bool scaled,
                  Mask mask) {
  const int64_t units = dim / kPerUnit<T>;
  alignas(64) float largest[kChunk], factors[kChunk];
  const uint32_t* queries = scratch.queries + chunk * units * kChunk;
  float* sums = scratch.sums + chunk * dim * kChunk;
  const int32_t* newest = scratch.newest + chunk * kChunk;
  for (int64_t r = 0; r < SIXTEENS * kLanes; r += V * kFloats) {
    mask.newest = newest + r;
    score_rows<T, V>(queries + r, scratch.keys, scaled ? scratch.key_scales : nullptr, units, count, mask,
                     scratch.scores + r, largest + r);
  }
  for (int64_t r = 0; r < SIXTEENS * kLanes; r += kLanes)
    weigh_rows<T>(scratch.scores + r, scaled ? scratch.value_scales : nullptr, count, scale, largest + r,
                  scratch.maxima + chunk * kChunk + r, scratch.totals + chunk * kChunk + r, factors + r,
                  scratch.weights + r);
  for (int64_t r = 0; r < SIXTEENS * kLanes; r += V * kFloats)
    add_values<T, V>(scratch.weights + r, scratch.values, dim, count, factors + r, sums + r);
}

template <typename T>
inline void attend_chunk(const PromptScratch<T>& scratch, int64_t chunk, int64_t rows, int64_t dim, int64_t count,
                         float scale, bool scaled, const Mask& mask) {
  constexpr bool wide = isa::kWidth == 64;
  if (rows > 2 * kLanes) return attend_chunk<T, wide ? 3 : 2, 3>(scratch, chunk, dim, count, scale, scaled, mask);
  if (rows > kLanes) return attend_chunk<T, 2, 2>(scratch, chunk, dim, count, scale, scaled, mask);
  attend_chunk<T, wide ? 1 : 2, 1>(scratch, chunk, dim, count, scale, scaled, mask);
}

// Copies the units of `count` keys and values from position `start`, even, and zeros up to the next multiple of kTall.
template <typename T>
inline int64_t copy_tile(const Pages<T>& pages, int64_t start, int64_t count, const PromptScratch<T>& scratch) {
  constexpr int64_t kUnit = kPerUnit<T>, kWord = sizeof(uint32_t);
  const int64_t dim = pages.dim, padded = (count + kTall - 1) / kTall * kTall;
  for (int64_t k = 0, run; k < count; k += run) {
    run = std::min(pages.block_size - (start + k) % pages.block_size, count - k);
    const auto keys = pages.template keys_at<T>(start + k);
    for (int64_t u = 0; u < dim / kUnit; ++u)
      std::memcpy(scratch.keys + u * kTileKeys + k, keys.from + u * keys.stride, run * kWord);
    std::memcpy(scratch.values + k / kUnit * dim, pages.template values_at<T>(start + k).from,
                (run + kUnit - 1) / kUnit * dim * kWord);
  }
  if (count < padded)
    for (int64_t u = 0; u < dim / kUnit; ++u)
      std::memset(scratch.keys + u * kTileKeys + count, 0, (padded - count) * kWord);
  if (count % kUnit)  // half a unit may never have been written
    for (int64_t d = 0; d < dim; ++d) scratch.values[count / kUnit * dim + d] &= 0xffffu;
  const int64_t used = (count + kUnit - 1) / kUnit;
  std::memset(scratch.values + used * dim, 0, (padded / kUnit - used) * dim * kWord);
  return padded;
}

// The same of a quantised cache, whose start is a multiple of 16: units are made of its numbers, and the scales copied,
// zeros for positions that are not in [first, end). Whatever stands there in memory, units of it are finite.
template <typename T>
inline int64_t expand_tile(const Pages<T>& pages, int64_t start, int64_t first, int64_t end,
                           const PromptScratch<T>& scratch) {
  constexpr int64_t kStored = kPerUnit<uint8_t>, kMade = Units<T, uint8_t>::kMade;
  const int64_t dim = pages.dim, padded = (end - start + kTall - 1) / kTall * kTall;
  const auto put = [](const auto& made, uint32_t* to, int64_t stride) {
    for (int64_t i = 0; i < kMade; ++i) store_words(to + i * stride, made.unit[i]);
  };
  for (int64_t k = 0; k < padded; k += kLanes) {
    const auto keys = pages.template keys_at<uint8_t>(start + k), values = pages.template values_at<uint8_t>(start + k);
    for (int64_t r = 0; r < dim / kStored; ++r)
      for (int64_t lane = 0; lane < kLanes; lane += kFloats)
        put(keys.at(r, lane), scratch.keys + r * kMade * kTileKeys + k + lane, kTileKeys);
    for (int64_t r = 0; r < kLanes / kStored; ++r)
      for (int64_t d = 0; d < dim; d += kFloats)
        put(values.at(r, d), scratch.values + (k / kStored + r) * kMade * dim + d, dim);
    const Lanes lanes = {static_cast<int32_t>(std::max<int64_t>(0, first - start - k)),
                         static_cast<int32_t>(std::min<int64_t>(kLanes, end - start - k))};
    store(scratch.key_scales + k, lanes.only(load(pages.key_scales(start + k)), 0.0f));
    store(scratch.value_scales + k, lanes.only(load(pages.value_scales(start + k)), 0.0f));
  }
  return padded;
}

// Rows of one task: new tokens of a sequence, times the heads of a group.
template <typename T>
struct PromptRows {
  T* output;                  // of the first row
  int64_t output_stride;      // elements from one token to the next
  int64_t group, dim, count;  // count: rows
  int64_t context;            // position of the first token

  int64_t position(int64_t row) const { return context + row / group; }
};

// queries(token)  the queries [group][dim] of a token of the task, until it is called again
template <typename T, typename Queries>
inline void load_rows(const PromptRows<T>& rows, const Queries& queries, const PromptScratch<T>& scratch) {
  const int64_t units = rows.dim / kPerUnit<T>, padded = (rows.count + kLanes - 1) / kLanes * kLanes;
  const T* query = nullptr;
  for (int64_t r = 0; r < padded; ++r) {
    const int64_t row = std::min(r, rows.count - 1), head = row % rows.group;  // lanes to spare repeat the last row
    if (head == 0 && row == r) query = queries(row / rows.group);
    uint32_t* to = scratch.queries + r / kChunk * units * kChunk + r % kChunk;
    for (int64_t u = 0; u < units; ++u)
      std::memcpy(to + u * kChunk, query + head * rows.dim + u * kPerUnit<T>, sizeof(uint32_t));
    scratch.newest[r] = static_cast<int32_t>(rows.position(row));
    scratch.maxima[r] = kNothing;
    scratch.totals[r] = 0.0f;
  }
  const int64_t chunks = (rows.count + kChunk - 1) / kChunk;
  std::memset(scratch.sums, 0, chunks * kChunk * rows.dim * sizeof(float));
}

// Sixteen rows become units side by side, where their queries were, and are then dealt out.
template <typename T>
inline void store_rows(const PromptRows<T>& rows, const PromptScratch<T>& scratch) {
  const int64_t units = rows.dim / kPerUnit<T>;
  uint32_t* made = scratch.queries;
  for (int64_t first = 0; first < rows.count; first += kLanes) {
    const float* sums = scratch.sums + first / kChunk * rows.dim * kChunk + first % kChunk;
    const Vector part = 1.0f / load(scratch.totals + first);
    for (int64_t u = 0; u < units; ++u, sums += kPerUnit<T> * kChunk)
      store_bits(made + u * kLanes, unit_of<T>(load(sums) * part, load(sums + (kPerUnit<T> - 1) * kChunk) * part));
    for (int64_t r = first; r < std::min(first + kLanes, rows.count); ++r) {
      T* output = rows.output + r / rows.group * rows.output_stride + r % rows.group * rows.dim;
      for (int64_t u = 0; u < units; ++u)
        std::memcpy(output + u * kPerUnit<T>, made + u * kLanes + r - first, sizeof(uint32_t));
    }
  }
}

// All that the rows see, tile by tile; each chunk skips the tiles that none of its rows sees.
template <typename T, typename Queries>
void attend_prompt(const PromptRows<T>& rows, const Queries& queries, const Pages<T>& pages, int64_t window,
                   float scale, const PromptScratch<T>& scratch) {
  load_rows(rows, queries, scratch);
  const int64_t end = rows.position(rows.count - 1) + 1;
  const int64_t oldest_seen = window > 0 ? std::max<int64_t>(0, rows.context - window + 1) : 0;
  const int64_t together = pages.quantized ? kLanes : kPerUnit<T>;
  const int64_t begin = oldest_seen / together * together;  // what it is copied with is masked
  for (int64_t start = begin, next; start < end; start = next) {
    next = std::min((start / kTileKeys + 1) * kTileKeys, end);
    const int64_t tile = next - start, padded = pages.quantized ? expand_tile(pages, start, oldest_seen, next, scratch)
                                                                : copy_tile(pages, start, tile, scratch);
    for (int64_t first = 0; first < rows.count; first += kChunk) {
      const int64_t count = std::min(kChunk, rows.count - first);
      const int64_t oldest = rows.position(first), newest = rows.position(first + count - 1);
      if (start > newest || (window > 0 && next <= oldest - window + 1)) continue;
      const bool masked = padded != tile || next - 1 > oldest || (window > 0 && start <= newest - window);
      const int64_t seen = std::min(padded, (newest - start) / kTall * kTall + kTall);
      attend_chunk(scratch, first / kChunk, count, rows.dim, seen, scale * kLog2E, pages.quantized,
                   Mask{nullptr, start, next, window, masked});
    }
  }
  store_rows(rows, scratch);
}

}  // namespace core
