// Weights as checkpoints store them, made up here, beside the values that they stand for.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "linear.h"

namespace check {

// How a weight is stored. `group` 0: one scale per row, or none for floats.
struct Storage {
  std::string name;
  core::Format format;
  int64_t group;
  bool minimums;
};

// A weight [outputs, inputs]: rows of `stride` bytes, and the same in double precision.
struct Stored {
  Storage storage;
  int64_t outputs, inputs, stride;
  std::vector<uint8_t> bytes;
  std::vector<double> values;
};

Stored stored(const Storage& storage, int64_t outputs, int64_t inputs, uint64_t seed);

// Every way of storing.
const std::vector<Storage>& storages();

// A packed weight and the memory that it points to.
class Packed {
 public:
  Packed(const Stored& weight, const std::vector<float>& bias, bool gated);
  Packed(const Packed&) = delete;

  core::Linear linear{};

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  std::vector<Line> panels_;
  std::vector<float> scales_, bias_;
};

// Memory that begins a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : lines_(bytes / 64 + 1) {}
  uint8_t* data() { return lines_[0].bytes; }

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  std::vector<Line> lines_;
};

inline bool is_float(const Storage& storage) {
  return storage.format == core::kFloat32 || storage.format == core::kBfloat16;
}

// Consecutive activations of a row that are quantised with one scale.
struct Part {
  int64_t start, count;
};

// Those of all rows [rows, inputs]; the last of a row is shorter where it has to be.
inline std::vector<Part> parts(const Storage& storage, int64_t rows, int64_t inputs) {
  const int64_t most = storage.group ? 32 : 128;
  std::vector<Part> found;
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < inputs; i += most) found.push_back({row * inputs + i, std::min(most, inputs - i)});
  return found;
}

// Random activations. For quantised weights they lie near the steps of the quantisation, so that it does not matter
// how a compiler rounds what is half way between two.
template <typename T>
std::vector<T> activations(const Storage& storage, Random& random, int64_t rows, int64_t inputs) {
  if (is_float(storage)) return random.values<T>(rows * inputs);
  std::vector<T> x(rows * inputs);
  for (const Part& part : parts(storage, rows, inputs)) {
    const int64_t start = part.start;
    // 127 steps are exact in either type where a step is a power of two.
    const float step = std::ldexp(sizeof(T) == 2 ? 1.0f : 1.5f + 0.4f * random.next(), static_cast<int>(start % 5) - 9);
    for (int64_t i = 0; i < part.count; i++) {
      const float whole = i == 7 ? -127.0f : std::nearbyint(random.next() * 126.0f);
      x[start + i] = core::narrow<T>((whole + (i == 7 ? 0.0f : 0.1f * random.next())) * step);
    }
  }
  return x;
}

// The activations that a weight stored like this is multiplied with: quantised to bytes, or as they are.
template <typename T>
std::vector<double> as_multiplied(const Storage& storage, const std::vector<T>& x, int64_t inputs) {
  std::vector<double> result(x.size());
  const bool exact = is_float(storage);
  for (const Part& part : parts(storage, x.size() / inputs, inputs)) {
    const int64_t start = part.start;
    float top = 0;
    for (int64_t i = 0; i < part.count; i++) top = std::fmax(top, std::fabs(core::widen(x[start + i])));
    const float inverse = top > 1e-35f ? 127.0f / top : 0.0f, scale = top / 127.0f;
    for (int64_t i = 0; i < part.count; i++) {
      const float value = core::widen(x[start + i]);
      result[start + i] = exact ? value : static_cast<double>(std::nearbyint(value * inverse)) * scale;
    }
  }
  return result;
}

// Sums in double precision, with the sum of their terms' magnitudes, to which rounding errors are held.
struct Product {
  std::vector<double> value, magnitude;
};

// x [rows, inputs] times the weight, plus bias: [rows, outputs].
Product product(const std::vector<double>& x, const Stored& weight, const std::vector<float>& bias);

// silu(gate) * up of a product whose outputs are gates first: [rows, outputs / 2].
Product gated(const Product& product, int64_t outputs);

// The largest error of `actual`, as a part of the magnitude of what was summed. Rounding the result to T is allowed.
template <typename T>
double relative_error(const std::vector<T>& actual, const Product& expected) {
  const double rounding = sizeof(T) == 2 ? std::ldexp(1.0, -8) : 0.0;
  double largest = 0;
  for (size_t i = 0; i < expected.value.size(); i++) {
    const double right = expected.value[i], error = std::fabs(core::widen(actual[i]) - right);
    const double counted = std::fmax(0.0, error - rounding * std::fabs(right)) / (expected.magnitude[i] + 1e-30);
    largest = std::isnan(error) ? HUGE_VAL : std::fmax(largest, counted);
  }
  return largest;
}

}  // namespace check
