// One decoder layer in one call: norm, projections, rotary, cache, attention, gated MLP, residual additions.

#pragma once

#include <cstdint>

#include "attention.h"
#include "linear.h"
#include "step.h"

namespace core {

// What never changes. Mirrored by core/native/layer.py.
//
// qkv      outputs (heads + 2 * kv_heads) * head_dim; gate_up is gated
// *_norm   [hidden], and [head_dim] for the norms of queries and keys, null where there are none
struct DecoderLayer {
  AttentionShape attention;
  int64_t hidden;
  float eps;
  const void* input_norm;
  const void* query_norm;
  const void* key_norm;
  const void* mlp_norm;
  const Linear* qkv;
  const Linear* output;
  const Linear* gate_up;
  const Linear* down;
};

}  // namespace core
