// Paged attention over a ragged batch: what the work of a step is cut into, and one call for all of it.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "attention_decode.h"
#include "attention_prompt.h"
#include "rotary.h"
#include "step.h"
#include "team.h"
#include "workspace.h"

namespace core {

constexpr int64_t kRowsAhead = 4;       // rows are far apart: that many before one is rotated, it is asked for
constexpr int64_t kTasksPerThread = 4;  // at least, where the work allows: threads are not equally fast

// One thread's memory for any task.
template <typename T>
struct AttentionScratch {
  AttentionScratch(Parts& parts, const AttentionShape& shape)
      : prompt(parts, shape),
        result(parts.take<float>(partial_floats(shape.heads / shape.kv_heads, shape.head_dim))),
        queries(parts.take<T>(shape.heads / shape.kv_heads * shape.head_dim)) {}

  PromptScratch<T> prompt;
  float* result;
  T* queries;
};

// Rows of a step whose results somebody reads.
struct Wanted {
  const int64_t* rows = nullptr;
  int64_t count = 0;

  bool all() const { return rows == nullptr; }
  bool any(int64_t first, int64_t end) const {
    return all() || std::any_of(rows, rows + count, [&](int64_t row) { return row >= first && row < end; });
  }
};

// The rows at `wanted`, null for all; all in their order are all, too.
inline Wanted wanted_rows(const int64_t* wanted, int64_t count, int64_t rows) {
  int64_t i = 0;
  while (wanted != nullptr && count == rows && i < rows && wanted[i] == i) ++i;
  return i == rows ? Wanted{} : Wanted{wanted, count};
}

// One layer's attention in one step.
//
// query     of token t and head h at query + t * query_stride + h * head_dim
// output    [rows, heads, head_dim]
// partials  [num_partials, kv_heads][partial_floats]
// finished  [num_partials, kv_heads]: at a sequence's first piece, how many of its pieces are done; zero before
// wanted    prompt rows that are none of these may be left as they are
// rotation  of the queries, where they are as they were projected; after a norm, where `norm` is not null
template <typename T>
struct AttentionCall {
  const AttentionShape& shape;
  const Step& step;
  const Cache& cache;
  const T* query;
  int64_t query_stride;
  T* output;
  float* partials;
  std::atomic<int32_t>* finished;
  Wanted wanted = {};
  const Rotation<T>* rotation = nullptr;
  const T* norm = nullptr;

  int64_t group() const { return shape.heads / shape.kv_heads; }

  Pages<T> pages(int64_t sequence, int64_t head) const {
    const int64_t bytes = block_bytes<T>(shape), offset = head * cache.num_blocks * bytes;
    return {static_cast<const char*>(cache.keys) + offset, static_cast<const char*>(cache.values) + offset,
            step.block_tables + sequence * step.table_width, shape.block_size, shape.head_dim, bytes,
            shape.quantized != 0};
  }

  // The queries [group][head_dim] of a row as they attend: where they lie, or made in `memory`.
  const T* queries(int64_t row, int64_t head, T* memory) const {
    const int64_t count = group(), dim = shape.head_dim;
    const T* given = query + row * query_stride + head * count * dim;
    if (rotation == nullptr) return given;
    bring_closer(given + kRowsAhead * query_stride, count * dim * sizeof(T));
    for (int64_t h = 0; h < count; ++h) rotation->apply(given + h * dim, norm, row, memory + h * dim);
    return memory;
  }

  T* output_at(int64_t row, int64_t head) const {
    return output + (row * shape.heads + head * group()) * shape.head_dim;
  }
};

inline int64_t partials_floats(const AttentionShape& shape, const Step& step) {
  return step.num_partials * shape.kv_heads * partial_floats(shape.heads / shape.kv_heads, shape.head_dim);
}

// ---- cutting -----------------------------------------------------------------------------------------------------

// Pieces begin at the same positions whatever else is in the step, so that a sequence's result does not depend on it.
inline void plan_decodes(const AttentionShape& shape, Step& step) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t i = 0; i < step.num_decodes; ++i) {
    const int32_t length = step.lengths[i];
    const int32_t oldest = shape.window > 0 ? std::max<int32_t>(0, length - shape.window) : 0;
    const int32_t piece = oldest / kPieceKeys, parts = (length + kPieceKeys - 1) / kPieceKeys - piece;
    const int32_t partial = step.num_partials;
    for (int32_t p = 0; p < parts; ++p) {
      const int32_t first = std::max<int32_t>(oldest, (piece + p) * kPieceKeys);
      const int32_t count = std::min<int32_t>(length, (piece + p + 1) * kPieceKeys) - first;
      step.tasks[step.num_tasks++] = {count * group, static_cast<int32_t>(i), first, count, parts, partial, p};
    }
    if (parts > 1) step.num_partials += parts;
  }
}

inline void plan_prompts(const AttentionShape& shape, Step& step, int64_t threads) {
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t new_tokens = step.query_start[step.num_sequences] - step.num_decodes;
  int64_t rows = kTaskRows;
  while (rows > kChunk && new_tokens * shape.heads < rows * kTasksPerThread * threads) rows -= kChunk;
  const int64_t at_once = std::max<int64_t>(1, rows / group);
  for (int64_t i = step.num_decodes; i < step.num_sequences; ++i) {
    const int64_t tokens = step.query_start[i + 1] - step.query_start[i];
    for (int64_t first = 0; first < tokens; first += at_once) {
      const int64_t count = std::min(at_once, tokens - first), keys = step.lengths[i] - tokens + first + count;
      const int64_t seen = shape.window > 0 ? std::min(keys, shape.window + count) : keys;
      step.tasks[step.num_tasks++] = {count * group * seen, static_cast<int32_t>(i), static_cast<int32_t>(first),
                                      static_cast<int32_t>(count), 1, 0, 0};
    }
  }
}

// Fills in step.tasks, longest first.
inline void plan_attention(const AttentionShape& shape, Step& step, int64_t threads) {
  step.num_tasks = step.num_partials = step.highest_block = 0;
  for (int64_t row = 0; row < step.rows; ++row)
    step.highest_block = std::max(step.highest_block, step.slots[row] / shape.block_size);
  plan_decodes(shape, step);
  plan_prompts(shape, step, threads);
  std::sort(step.tasks, step.tasks + step.num_tasks, [](const Task& a, const Task& b) {
    return a.cost != b.cost ? a.cost > b.cost : a.sequence != b.sequence ? a.sequence < b.sequence : a.first < b.first;
  });
}

// ---- working -----------------------------------------------------------------------------------------------------

// Leaves a piece's result for the others; whoever is last adds them up, in order.
template <typename T>
void finish_piece(const AttentionCall<T>& call, const Task& task, int64_t head, T* output) {
  const int64_t kv_heads = call.shape.kv_heads, group = call.group(), dim = call.shape.head_dim;
  const auto piece = [&](int64_t p) {
    return partial_at(call.partials + ((task.partial + p) * kv_heads + head) * partial_floats(group, dim), group);
  };
  std::atomic<int32_t>& finished = call.finished[task.partial * kv_heads + head];
  if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < task.parts) return;
  for (int32_t p = 1; p < task.parts; ++p) merge(piece(0), piece(p), group, dim);
  store_tokens(piece(0), group, dim, output);
}

template <typename T>
void attend_decode(const AttentionCall<T>& call, const Task& task, int64_t head, const AttentionScratch<T>& scratch) {
  const int64_t group = call.group(), dim = call.shape.head_dim, row = call.step.query_start[task.sequence];
  T* output = call.output_at(row, head);
  float* memory = scratch.result;
  if (task.parts > 1)
    memory = call.partials +
             ((task.partial + task.part) * call.shape.kv_heads + head) * partial_floats(group, dim);
  const Partial result = partial_at(memory, group);
  attend_tokens(call.queries(row, head, scratch.queries), call.pages(task.sequence, head), group,
                call.shape.scale * kLog2E, task.first, task.count, result);
  if (task.parts > 1) return finish_piece(call, task, head, output);
  store_tokens(result, group, dim, output);
}

template <typename T>
void attend_task(const AttentionCall<T>& call, const Task& task, int64_t head, const AttentionScratch<T>& scratch) {
  const Step& step = call.step;
  const AttentionShape& shape = call.shape;
  const int64_t start = step.query_start[task.sequence];
  if (task.sequence < step.num_decodes) return attend_decode(call, task, head, scratch);
  const int64_t tokens = step.query_start[task.sequence + 1] - start, row = start + task.first;
  if (!call.wanted.any(row, row + task.count)) return;
  const PromptRows<T> rows = {call.output_at(row, head), shape.heads * shape.head_dim, call.group(), shape.head_dim,
                              task.count * call.group(), step.lengths[task.sequence] - tokens + task.first};
  const auto queries = [&](int64_t token) { return call.queries(row + token, head, scratch.queries); };
  attend_prompt(rows, queries, call.pages(task.sequence, head), shape.window, shape.scale, scratch.prompt);
}

// Every new token of the step attends to what its sequence has in the cache. Wait before, and before reading.
template <typename T>
void attend(Team& team, const AttentionCall<T>& call, const AttentionScratch<T>& scratch) {
  const Step& step = call.step;
  const int64_t kv_heads = call.shape.kv_heads, width = call.shape.heads * call.shape.head_dim;
  const int64_t tokens = step.query_start[step.num_sequences];
  if (team.rank == 0) std::memset(call.output + tokens * width, 0, (step.rows - tokens) * width * sizeof(T));
  team.each(step.num_tasks * kv_heads, [&](int64_t i) {
    attend_task(call, step.tasks[i / kv_heads], i % kv_heads, scratch);
  });
}

}  // namespace core
