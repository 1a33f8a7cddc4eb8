// How a layer's keys and values lie in the blocks of the cache: in units of four bytes, as they are multiplied.
//
// A unit is one float, or two bfloat16: of a key, elements of the head that follow each other; of a value, the same
// element of tokens that follow each other. A block is one run of memory.
//
// keys    [units of a head][block_size]
// values  [units of block_size tokens][head_dim]

#pragma once

#include <cstdint>
#include <cstring>

#include "units.h"

namespace core {

// Where the keys and values of one sequence lie, for one key/value head.
template <typename T>
struct Pages {
  const T* keys;
  const T* values;
  const int32_t* blocks;
  int64_t block_size, dim;

  // The block that holds this position.
  int64_t block(int64_t position) const { return blocks[position / block_size] * block_size * dim; }

  // Unit u of the keys from this position on, to the end of its block, stands at [u * block_size].
  const uint32_t* keys_at(int64_t position) const {
    return reinterpret_cast<const uint32_t*>(keys + block(position)) + position % block_size;
  }

  // The values of this position, and of the one that shares their units.
  const uint32_t* values_at(int64_t position) const {
    return reinterpret_cast<const uint32_t*>(values + block(position)) + position % block_size / kPerUnit<T> * dim;
  }
};

// Puts one token's key and value in their place. `keys` and `values` are those of one key/value head.
template <typename T>
inline void store_token(T* keys, T* values, int64_t slot, int64_t block_size, int64_t dim, const T* key,
                        const T* value) {
  constexpr int64_t kUnit = kPerUnit<T>;
  const int64_t block = slot / block_size * block_size * dim, offset = slot % block_size;
  for (int64_t d = 0; d < dim; d += kUnit)
    std::memcpy(keys + block + d * block_size + offset * kUnit, key + d, sizeof(uint32_t));
  T* to = values + block + offset / kUnit * kUnit * dim + offset % kUnit;
  for (int64_t d = 0; d < dim; ++d) to[d * kUnit] = value[d];
}

}  // namespace core
