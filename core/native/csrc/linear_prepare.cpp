// Activations as packed weights take them: quantised symmetrically to within +-127, or copied to where they are
// read faster.
//
// A row that is not finite stays so: its scale is not a number, so that what is computed of it can be noticed.

#include "linear_panel.h"

namespace core {
namespace {

constexpr int64_t kGrain = 16384;  // activations that are worth a task

constexpr auto larger = [](const auto& a, const auto& b) { return a > b ? a : b; };
constexpr auto add = [](const auto& a, const auto& b) { return a + b; };

// All lanes, combined in halves.
template <typename F>
inline int32_t across(const Integers& v, F combine) {
  typedef int32_t Eight __attribute__((vector_size(32)));
  typedef int32_t Four __attribute__((vector_size(16)));
  Eight halves[2];
  std::memcpy(halves, &v, sizeof(v));
  const Eight eight = combine(halves[0], halves[1]);
  Four quarters[2];
  std::memcpy(quarters, &eight, sizeof(eight));
  const Four four = combine(quarters[0], quarters[1]);
  return combine(combine(four[0], four[2]), combine(four[1], four[3]));
}

// The largest magnitude of `count` values; NaN when one of them is not finite. Without their signs, the bits of
// floats are integers in the same order, with those that are not finite above all others.
template <typename T>
float magnitude(const T* x, int64_t count) {
  Integers most = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = larger(most, bits_of<Integers>(load(x + i)) & 0x7fffffff);
  int32_t top = across(most, larger);
  for (; i < count; ++i) top = larger(top, bits_of<int32_t>(widen(x[i])) & 0x7fffffff);
  return bits_of<float>(top) + bits_of<float>(top) * 0.0f;  // infinity becomes NaN
}

// Writes round(x * inverse) and returns the sum of what it wrote.
template <typename T>
int32_t quantise(const T* x, int64_t count, float inverse, int8_t* to) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Integers start = bits_of<Integers>(magic);
  Integers sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Integers q = bits_of<Integers>(load(x + i) * inverse + magic) - start;
    const Bytes bytes = __builtin_convertvector(q, Bytes);
    std::memcpy(to + i, &bytes, sizeof(bytes));
    sums += q;
  }
  int32_t total = across(sums, add);
  for (; i < count; ++i) {
    const int32_t q = bits_of<int32_t>(widen(x[i]) * inverse + 12582912.0f) - bits_of<int32_t>(12582912.0f);
    to[i] = static_cast<int8_t>(q), total += q;
  }
  return total;
}

// 127 / magnitude; 0 for a row of zeros, of numbers so small that it would overflow, and of NaN.
inline float inverse_of(float magnitude) { return magnitude > 1e-35f ? 127.0f / magnitude : 0.0f; }

// A row as blocks of kCount values, the last filled up with zeros.
template <int64_t kCount, typename T>
void quantise_row(const Linear& linear, const T* x, uint8_t* to) {
  const int32_t offset = linear.format == kInt8 ? isa::kOffset : linear.minimums ? 0 : 8;
  for (int64_t i = 0; i < linear.inputs; i += kCount, to += sizeof(Quantised<kCount>)) {
    Quantised<kCount> block = {};
    const int64_t count = std::min(kCount, linear.inputs - i);
    const float top = magnitude(x + i, count);
    const int32_t total = quantise(x + i, count, inverse_of(top), block.values);
    block.scale = top / 127.0f;
    block.sum = block.scale * static_cast<float>(total);
    block.correction = -offset * total;
    std::memcpy(to, &block, sizeof(block));
  }
}

template <typename T>
void prepare_row(const Linear& linear, const T* x, uint8_t* to) {
  if (linear.group) return quantise_row<kBlock>(linear, x, to);
  if (linear.format == kInt8) return quantise_row<kChunk>(linear, x, to);
  const int64_t given = linear.inputs * int64_t{sizeof(T)};
  std::memcpy(to, x, given);
  std::memset(to + given, 0, steps_of(linear) * 4 - given);
}

}  // namespace

int64_t prepared_bytes(const Linear& linear, int64_t rows) {
  const bool quantised = linear.format == kInt8 || linear.format == kInt4;
  return quantised || copies(linear, rows) ? rows * row_bytes(linear) : 0;
}

template <typename T>
const void* prepare(Team& team, const Linear& linear, const T* x, int64_t rows, void* scratch) {
  if (prepared_bytes(linear, rows) == 0) return x;
  const int64_t grain = std::max<int64_t>(1, kGrain / linear.inputs), stride = row_bytes(linear);
  team.each(divide_up(rows, grain), [&](int64_t task) {
    for (int64_t row = task * grain; row < std::min(rows, (task + 1) * grain); ++row)
      prepare_row(linear, x + row * linear.inputs, static_cast<uint8_t*>(scratch) + row * stride);
  });
  return scratch;
}

template const void* prepare<float>(Team&, const Linear&, const float*, int64_t, void*);
template const void* prepare<bfloat16>(Team&, const Linear&, const bfloat16*, int64_t, void*);

}  // namespace core
