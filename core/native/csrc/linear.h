// Packed weights and their products with rows of activations.
//
// A weight [outputs, inputs] is packed once into panels of 32 outputs. Each product is a part of a larger call whose
// threads share it; the caller waits before it reads what they wrote.

#pragma once

#include <cstdint>

#include "team.h"
#include "vector.h"

namespace core {

enum Format : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt4 = 3 };

constexpr int64_t kPanel = 32;  // outputs that are packed and computed together

// A packed weight. Mirrored field by field by core/native/linear.py, which owns the memory.
//
// format   how the values are stored
// gated    the outputs are a gate and an up projection of outputs / 2 rows each, interleaved by 16 in each panel
// minimums   each group has a minimum beside its scale: w = scale * q + minimum
// outputs, inputs   of the weight as it was given; panels are padded with zeros
// group    consecutive inputs that share a scale; 0 where there are none, or one for all inputs
// panels   the values, panel by panel, and the scales of groups among them: see linear_panel.h
// scales   [outputs padded to panels], null unless kInt8 has one scale per output
// bias     like scales, null where there is none
struct Linear {
  int32_t format, gated, minimums;
  int64_t outputs, inputs, group;
  void* panels;
  float* scales;
  float* bias;
};

// Bytes that `prepare` writes for `rows` rows; 0 where x is multiplied as it is.
int64_t prepared_bytes(const Linear& linear, int64_t rows);

// The rows of x [rows, inputs] as the weight's format multiplies them: quantised, with their scales, in `scratch`;
// mostly x itself for float formats. Weights of equal format, group and inputs share the result. Wait before using it.
template <typename T>
const void* prepare(Team& team, const Linear& linear, const T* x, int64_t rows, void* scratch);

// y[m, n] = sum over k of x[m, k] * weight[n, k], plus bias[n]; y is [rows, outputs]. For a gated weight
// y[m, n] = silu(gate[m, n]) * up[m, n] and y is [rows, outputs / 2]. `input` is what `prepare` returned.
template <typename T>
void multiply(Team& team, const Linear& linear, const void* input, int64_t rows, T* y);

}  // namespace core
