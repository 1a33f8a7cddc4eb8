// A step of a few sequences, and the cache of one layer: as the core's step.h describes them.

#pragma once

#include <string>
#include <vector>

#include "check.h"
#include "pages.h"
#include "step.h"

extern "C" {
void core_plan_attention(const core::AttentionShape* shape, core::Step* step);
}

namespace check {

constexpr int64_t kPadding = 3;  // rows of the step that belong to no sequence

struct Sequence {
  int64_t new_tokens, length;
};

// Blocks in no order, one more than sequences own; block 0 is nobody's.
class Paged {
 public:
  Paged(const core::AttentionShape& shape, std::vector<Sequence> sequences);
  Paged(const Paged&) = delete;

  // Where the key and value of a sequence's token lie: block * block_size + offset.
  int64_t slot(size_t sequence, int64_t position) const {
    const int64_t block = tables_[sequence * step.table_width + position / shape.block_size];
    return block * shape.block_size + position % shape.block_size;
  }

  // The step's new tokens: the sequence and position of each row.
  struct Row {
    size_t sequence;
    int64_t position;
  };

  const core::AttentionShape shape;
  const std::vector<Sequence> sequences;
  std::vector<Row> rows;
  int64_t num_blocks = 1;
  core::Step step{};

 private:
  std::vector<int32_t> starts_, tables_, lengths_;
  std::vector<int64_t> slots_;
  std::vector<core::Task> tasks_;
};

template <typename T>
std::vector<double> widened(const std::vector<T>& from) {
  std::vector<double> to(from.size());
  for (size_t i = 0; i < from.size(); i++) to[i] = core::widen(from[i]);
  return to;
}

// What is left of a token's key or value in int8, in place.
void keep_in_int8(double* row, int64_t dim);

// One layer's cache, full of NaN, and what every sequence should have in it.
template <typename T>
class History {
 public:
  // Random keys and values for every token; those from before the step are in the cache.
  History(const Paged& paged, Random& random) : paged_(paged) {
    const core::AttentionShape& shape = paged.shape;
    const int64_t bytes = shape.kv_heads * paged.num_blocks * core::block_bytes<T>(shape);
    stored_keys.assign(bytes, static_cast<char>(0xff)), stored_values = stored_keys;
    cache = {stored_keys.data(), stored_values.data(), paged.num_blocks, 0};
    for (size_t i = 0; i < paged.sequences.size(); i++) {
      const int64_t count = paged.sequences[i].length * width();
      keys.push_back(random.values<T>(count)), values.push_back(random.values<T>(count));
      for (int64_t at = 0; at < paged.sequences[i].length - paged.sequences[i].new_tokens; at++) put(i, at);
    }
  }
  History(const History&) = delete;

  int64_t width() const { return paged_.shape.kv_heads * paged_.shape.head_dim; }

  void put(size_t sequence, int64_t position) {
    const core::AttentionShape& shape = paged_.shape;
    for (int64_t head = 0; head < shape.kv_heads; head++) {
      const int64_t from = position * width() + head * shape.head_dim;
      core::store_token(shape, cache, head, paged_.slot(sequence, position), &keys[sequence][from],
                        &values[sequence][from]);
    }
  }

  // A sequence's keys or values, as they are read from the cache.
  std::vector<double> kept(std::vector<double> tokens) const {
    const int64_t dim = paged_.shape.head_dim;
    for (size_t at = 0; paged_.shape.quantized && at < tokens.size(); at += dim) keep_in_int8(&tokens[at], dim);
    return tokens;
  }

  std::vector<std::vector<T>> keys, values;  // of each sequence, [length, kv_heads, head_dim]
  std::vector<char> stored_keys, stored_values;
  core::Cache cache;

 private:
  const Paged& paged_;
};

// Attention of a query [heads, head_dim] at `position` over its sequence's keys and values
// [length, kv_heads, head_dim], in double precision: [heads, head_dim].
std::vector<double> attended(const core::AttentionShape& shape, const double* query, int64_t position,
                             const std::vector<double>& keys, const std::vector<double>& values);

}  // namespace check
