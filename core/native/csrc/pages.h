// How a layer's keys and values lie in the blocks of the cache: in units of four bytes, as they are multiplied.
//
// A unit is one float, or two bfloat16: of a key, elements of the head that follow each other; of a value, the same
// element of tokens that follow each other. A block is one run of memory.
//
// keys    [units of a head][block_size]
// values  [units of block_size tokens][head_dim]
//
// Quantised ones are laid out alike, in units of four whole numbers, of which units to multiply are made as they are
// read. The scales of a block's tokens lie behind them, float [block_size]; a token's products are multiplied by its
// scale, and not its elements.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "step.h"
#include "units.h"

namespace core {

constexpr int64_t kFloats = isa::kWidth / 4;  // lanes of a vector of the processor

// A block of one head's keys, or of its values.
template <typename T>
inline int64_t block_bytes(const AttentionShape& shape) {
  const int64_t element = shape.quantized ? sizeof(uint8_t) : sizeof(T);
  return shape.block_size * (shape.head_dim * element + (shape.quantized ? sizeof(float) : 0));
}

// ---- reading -----------------------------------------------------------------------------------------------------

inline void store_words(uint32_t* to, const isa::Words& words) { std::memcpy(to, &words, sizeof(words)); }

// Whole numbers from -128 up are stored as bytes from 0 up.
constexpr uint32_t kZeroByte = 128;

// Byte `index` of each lane, as the whole number that it stands for. 2^23 + n ends in the bits of n.
inline isa::Floats number_at(const isa::Words& stored, int index) {
  const isa::Words bits = ((stored >> (8 * index)) & 0xffu) | 0x4b000000u;
  return bits_of<isa::Floats>(bits) - (8388608.0f + kZeroByte);
}

// Rows of stored units, each row `stride` long. They hold elements of S: T, or uint8_t for whole numbers.
template <typename T, typename S>
struct Units {
  static constexpr int kMade = static_cast<int>(kPerUnit<S> / kPerUnit<T>);  // units of T that one is made into

  const uint32_t* from;
  int64_t stride;

  struct Made {
    isa::Words unit[kMade];
  };

  // Of row r, as many lanes as a vector of the processor holds, from `lane` on.
  Made at(int64_t r, int64_t lane) const {
    const isa::Words stored = vector_from<isa::Words>(from + r * stride + lane);
    Made made;
    for (int i = 0; i < kMade; ++i) {
      if constexpr (std::is_same_v<S, T>)
        made.unit[i] = stored;
      else if constexpr (kPerUnit<T> == 1)
        made.unit[i] = bits_of<isa::Words>(number_at(stored, i));
      else  // the lower half of such a float is 0: a bfloat16 holds it
        made.unit[i] = (bits_of<isa::Words>(number_at(stored, 2 * i)) >> 16) |
                       bits_of<isa::Words>(number_at(stored, 2 * i + 1));
    }
    return made;
  }
};

// Some of 16 tokens that follow each other: lanes from `low` up to `high`.
struct Lanes {
  int32_t low, high;

  // `others` in all lanes but these.
  Vector only(const Vector& v, float others) const {
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return ((lane >= low) & (lane < high)) ? v : Vector{} + others;
  }
};

// Where the keys and values of one sequence lie, for one key/value head.
template <typename T>
struct Pages {
  const char* keys;
  const char* values;
  const int32_t* blocks;
  int64_t block_size, dim, bytes;  // `bytes` of a block
  bool quantized;

  int64_t block(int64_t position) const { return blocks[position / block_size] * bytes; }

  // The keys from this position on, to the end of its block: rows are units of the head, lanes are tokens.
  template <typename S>
  Units<T, S> keys_at(int64_t position) const {
    return {reinterpret_cast<const uint32_t*>(keys + block(position)) + position % block_size, block_size};
  }

  // The values of this position, and of those that share its unit: rows are units of tokens.
  template <typename S>
  Units<T, S> values_at(int64_t position) const {
    const int64_t row = position % block_size / kPerUnit<S>;
    return {reinterpret_cast<const uint32_t*>(values + block(position)) + row * dim, dim};
  }

  // The scales of this position and what follows it in its block.
  const float* key_scales(int64_t position) const { return scales(keys, position); }
  const float* value_scales(int64_t position) const { return scales(values, position); }

 private:
  const float* scales(const char* stored, int64_t position) const {
    return reinterpret_cast<const float*>(stored + block(position) + block_size * dim) + position % block_size;
  }
};

// ---- writing -----------------------------------------------------------------------------------------------------

// row [dim] -> whole numbers up to 127, and what they are to be multiplied by: 0 for zeros, NaN for what is not finite.
template <typename T>
inline float quantize_row(const T* row, int64_t dim, uint8_t* numbers) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const Vector limit = Vector{} + 127.0f, magic = Vector{} + 12582912.0f;  // adding it rounds to a whole number
  Vector most = {}, odd = {};
  for (int64_t d = 0; d < dim; d += kLanes) {
    const Vector x = load(row + d), size = x < 0.0f ? -x : x;
    most = size > most ? size : most;
    odd += x * 0.0f;
  }
  float highest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) highest = std::max<float>(highest, most[lane]);
  const float scale = sum(odd) == 0.0f ? highest / 127.0f : NAN;
  if (!(scale > 0.0f)) {
    std::memset(numbers, kZeroByte, dim);
    return scale;
  }
  for (int64_t d = 0; d < dim; d += kLanes) {
    Vector x = load(row + d) / scale;
    x = x > limit ? limit : x < -limit ? -limit : x;  // a scale that is hardly a number anymore is far off
    const Integers whole = bits_of<Integers>(x + magic) - bits_of<Integers>(magic) + static_cast<int>(kZeroByte);
    const Bytes made = __builtin_convertvector(whole, Bytes);
    std::memcpy(numbers + d, &made, sizeof(made));
  }
  return scale;
}

// Puts a key and a value [dim] in their place, as token `offset` of their block.
template <typename S>
inline void place_rows(S* keys, S* values, int64_t offset, int64_t block_size, int64_t dim, const S* key,
                       const S* value) {
  constexpr int64_t kUnit = kPerUnit<S>;
  for (int64_t d = 0; d < dim; d += kUnit)
    std::memcpy(keys + d * block_size + offset * kUnit, key + d, sizeof(uint32_t));
  S* to = values + offset / kUnit * kUnit * dim + offset % kUnit;
  for (int64_t d = 0; d < dim; ++d) to[d * kUnit] = value[d];
}

// Puts one token's key and value [head_dim] of one head in their place.
template <typename T>
inline void store_token(const AttentionShape& shape, const Cache& cache, int64_t head, int64_t slot, const T* key,
                        const T* value) {
  const int64_t dim = shape.head_dim, block_size = shape.block_size, offset = slot % block_size;
  const int64_t block = (head * cache.num_blocks + slot / block_size) * block_bytes<T>(shape);
  char *keys = static_cast<char*>(cache.keys) + block, *values = static_cast<char*>(cache.values) + block;
  if (!shape.quantized)
    return place_rows(reinterpret_cast<T*>(keys), reinterpret_cast<T*>(values), offset, block_size, dim, key, value);
  uint8_t numbers[2][kMaxHeadDim];
  const int64_t scale_at = block_size * dim + offset * sizeof(float);
  const float key_scale = quantize_row(key, dim, numbers[0]), value_scale = quantize_row(value, dim, numbers[1]);
  std::memcpy(keys + scale_at, &key_scale, sizeof(float));
  std::memcpy(values + scale_at, &value_scale, sizeof(float));
  place_rows(reinterpret_cast<uint8_t*>(keys), reinterpret_cast<uint8_t*>(values), offset, block_size, dim, numbers[0],
             numbers[1]);
}

}  // namespace core
