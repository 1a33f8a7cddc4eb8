// What a call is told about its layers' attention and about the step: plain structs, filled in by Python.

#pragma once

#include <cstdint>

namespace core {

constexpr int64_t kMaxHeadDim = 256;

enum Dtype : int32_t { kModelFloat32 = 0, kModelBfloat16 = 1 };

// The attention of one layer. Mirrored by core/native/attention.py.
//
// window     a token sees itself and the window - 1 tokens before it; 0: all before it
// quantized  whether keys and values are kept in int8, with a scale for each; see pages.h
struct AttentionShape {
  int32_t dtype;
  float scale;
  int64_t heads, kv_heads, head_dim, block_size, window, quantized;
};

// One layer's cache, keys and values alike [kv_heads, num_blocks] of the blocks that pages.h describes.
//
// populated  blocks of each head whose pages have been brought in, from block 0 on; see populate.h
struct Cache {
  void* keys;
  void* values;
  int64_t num_blocks, populated;
};

// One piece of a step's attention; there is one for each key/value head.
//
// A sequence with one new token: the keys [first, first + count), one of `parts` pieces, whose results meet at
// `partial`. Any other: its new tokens [first, first + count) and all they see.
struct Task {
  int64_t cost;
  int32_t sequence, first, count, parts, partial, part;
};

// What the layers of one cache group share in one step. Mirrored by core/native/attention.py.
//
// rows          tokens of the step, padding included
// tasks         [num_tasks], as `plan_attention` filled them in
// num_partials  pieces of sequences that were cut
// highest_block  that a token of the step is written to
// query_start   [num_sequences + 1]
// block_tables  [num_sequences, table_width]
// lengths       [num_sequences]
// slots         [rows], where each token's key and value go
// cos, sin      [rows, half], model dtype; only for layers that rotate
struct Step {
  int64_t rows, num_sequences, num_decodes, table_width, num_tasks, num_partials, highest_block, half;
  const int32_t* query_start;
  const int32_t* block_tables;
  const int32_t* lengths;
  const int64_t* slots;
  const void* cos;
  const void* sin;
  Task* tasks;
};

}  // namespace core
