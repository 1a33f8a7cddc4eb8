// How packed weights and prepared activations lie in memory: what packing writes and the kernels read.
//
// A panel is a row of steps. A step holds, for each of 32 outputs, the 4 bytes that meet 4 bytes of activations: one
// float, two bfloat16 or four int8; for int4 eight values, the second four in the upper halves of the bytes. With
// groups, each begins with the float16 scales of the 32 outputs, and their minimums if there are any.

#pragma once

#include "isa.h"
#include "linear.h"

namespace core {

constexpr int64_t kStepBytes = 4 * kPanel;
constexpr int64_t kBlock = 32;   // activations that share a scale where weights are grouped; a group is whole blocks
constexpr int64_t kChunk = 128;  // the same where a weight has one scale for all inputs; a row's last may be shorter

// Quantised activations that share a scale.
template <int64_t kCount>
struct Quantised {
  int8_t values[kCount];
  float scale;
  float sum;           // of the values, times the scale: what a minimum is multiplied by
  int32_t correction;  // added to each inner product, for what was added to the weights
};

typedef Quantised<kBlock> Block;
typedef Quantised<kChunk> Chunk;

inline int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }
inline int64_t panels_of(const Linear& linear) {
  return linear.gated ? divide_up(linear.outputs / 2, kPanel / 2) : divide_up(linear.outputs, kPanel);
}
inline int64_t inputs_per_step(int32_t format) {
  return format == kFloat32 ? 1 : format == kBfloat16 ? 2 : format == kInt8 ? 4 : 8;
}
inline int64_t steps_of(const Linear& linear) { return divide_up(linear.inputs, inputs_per_step(linear.format)); }

// Bytes of a group's scales and minimums.
inline int64_t header_bytes(const Linear& linear) { return linear.group ? (linear.minimums ? 4 : 2) * kPanel : 0; }

inline int64_t panel_bytes(const Linear& linear) {
  const int64_t groups = linear.group ? linear.inputs / linear.group : 0;
  return steps_of(linear) * kStepBytes + groups * header_bytes(linear);
}

// Bytes from one prepared row to the next: a whole and odd number of cache lines, so that the rows of a tile do not
// compete for the same places in the cache.
inline int64_t row_bytes(const Linear& linear) {
  const int64_t bytes = linear.group ? linear.inputs / kBlock * int64_t{sizeof(Block)}
                        : linear.format == kInt8 ? divide_up(linear.inputs, kChunk) * int64_t{sizeof(Chunk)}
                                                 : steps_of(linear) * 4;
  return (divide_up(bytes, 64) | 1) * 64;
}

// Whether rows of a float format have to be copied: pairs need an even length, and rows of a tile that are a
// multiple of 4096 bytes apart push each other out of the first cache.
inline bool copies(const Linear& linear, int64_t rows) {
  if (linear.format == kFloat32) return rows > 2 && linear.inputs % 512 == 0;
  return linear.inputs % 2 != 0 || (rows > 2 && linear.inputs % 1024 == 0);
}

// Of the weight as it was given, the row that a lane of a panel holds; -1 for padding.
inline int64_t row_of(const Linear& linear, int64_t panel, int64_t lane) {
  const int64_t half = kPanel / 2;
  const int64_t row = linear.gated ? panel * half + lane % half : panel * kPanel + lane;
  const int64_t rows = linear.gated ? linear.outputs / 2 : linear.outputs;
  return row >= rows ? -1 : linear.gated && lane >= half ? rows + row : row;
}

}  // namespace core
