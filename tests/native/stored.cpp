// See stored.h.

#include "stored.h"

extern "C" {
int64_t linear_panel_count(const core::Linear* linear);
int64_t linear_panel_bytes(const core::Linear* linear);
void linear_pack(const core::Linear* linear, const uint8_t* source, int64_t stride);
void linear_spread(const core::Linear* linear, const float* values, float* to);
}

namespace check {

const std::vector<Storage>& storages() {
  static const std::vector<Storage> all = {
      {"float32", core::kFloat32, 0, false},     {"bfloat16", core::kBfloat16, 0, false},
      {"int8", core::kInt8, 0, false},           {"int8 by 32", core::kInt8, 32, false},
      {"int4 by 32", core::kInt4, 32, false},    {"int4 by 64", core::kInt4, 64, false},
      {"int4 by 128", core::kInt4, 128, false},  {"int4 by 32, minimum", core::kInt4, 32, true},
  };
  return all;
}

template <typename T>
static void append(std::vector<uint8_t>& bytes, const T& value) {
  const uint8_t* first = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), first, first + sizeof(value));
}

// A random float16 of small magnitude, sometimes below the smallest normal one, and what it stands for.
static double append_half(std::vector<uint8_t>& bytes, Random& random, bool negative) {
  const int exponent = static_cast<int>((random.next() + 1) * 3);  // 0 to 5
  const int fraction = static_cast<int>((random.next() + 1) * 511);
  append(bytes, static_cast<uint16_t>((negative ? 0x8000 : 0) | exponent << 10 | fraction));
  const double value = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return negative ? -value : value;
}

static void append_group(Stored& weight, Random& random) {
  const int64_t count = weight.storage.group ? weight.storage.group : weight.inputs;
  double scale, minimum = 0;
  if (weight.storage.group) {
    scale = append_half(weight.bytes, random, false);
    if (weight.storage.minimums) minimum = append_half(weight.bytes, random, true);
  } else {
    const float narrow = (random.next() + 1.5f) * 1e-3f;
    append(weight.bytes, narrow);
    scale = narrow;
  }
  const bool nibbles = weight.storage.format == core::kInt4;
  std::vector<uint8_t> stored(nibbles ? count / 2 : count);
  for (int64_t i = 0; i < count; i++) {
    // The extremes come first: products of -128 are the hardest for instructions that add in 16 bits.
    const int most = nibbles ? 15 : 255, drawn = static_cast<int>((random.next() + 1) * 0.5f * (most + 1));
    const int q = i < 8 ? (i % 3 ? most : 0) : std::min(drawn, most);
    if (nibbles) {
      stored[i % (count / 2)] |= i < count / 2 ? q : q << 4;
    } else {
      stored[i] = static_cast<uint8_t>(q - 128);
    }
    weight.values.push_back(weight.storage.minimums ? scale * q + minimum : scale * (q - (nibbles ? 8 : 128)));
  }
  weight.bytes.insert(weight.bytes.end(), stored.begin(), stored.end());
}

Stored stored(const Storage& storage, int64_t outputs, int64_t inputs, uint64_t seed) {
  Random random(seed);
  Stored weight{storage, outputs, inputs, 0, {}, {}};
  for (int64_t row = 0; row < outputs; row++) {
    if (is_float(storage)) {
      for (int64_t i = 0; i < inputs; i++) {
        const core::bfloat16 narrow = core::narrow<core::bfloat16>(random.next());
        const float value = storage.format == core::kFloat32 ? random.next() : core::widen(narrow);
        weight.values.push_back(value);
        storage.format == core::kFloat32 ? append(weight.bytes, value) : append(weight.bytes, narrow);
      }
    } else {
      for (int64_t i = 0; i < inputs; i += storage.group ? storage.group : inputs) append_group(weight, random);
    }
  }
  weight.stride = static_cast<int64_t>(weight.bytes.size()) / outputs;
  return weight;
}

Packed::Packed(const Stored& weight, const std::vector<float>& bias, bool gated) {
  linear.format = weight.storage.format;
  linear.gated = gated;
  linear.minimums = weight.storage.minimums;
  linear.outputs = weight.outputs, linear.inputs = weight.inputs, linear.group = weight.storage.group;
  const int64_t panels = linear_panel_count(&linear);
  panels_.resize(panels * linear_panel_bytes(&linear) / 64 + 1);
  linear.panels = panels_.data();
  if (linear.format == core::kInt8 && !linear.group) {
    scales_.resize(panels * core::kPanel);
    linear.scales = scales_.data();
  }
  linear_pack(&linear, weight.bytes.data(), weight.stride);
  if (!bias.empty()) {
    bias_.resize(panels * core::kPanel);
    linear_spread(&linear, bias.data(), bias_.data());
    linear.bias = bias_.data();
  }
}

Product product(const std::vector<double>& x, const Stored& weight, const std::vector<float>& bias) {
  Product result;
  for (size_t row = 0; row < x.size(); row += weight.inputs) {
    for (int64_t n = 0; n < weight.outputs; n++) {
      double sum = bias.empty() ? 0.0 : bias[n], magnitude = std::fabs(sum);
      for (int64_t k = 0; k < weight.inputs; k++) {
        const double term = x[row + k] * weight.values[n * weight.inputs + k];
        sum += term, magnitude += std::fabs(term);
      }
      result.value.push_back(sum), result.magnitude.push_back(magnitude);
    }
  }
  return result;
}

Product gated(const Product& product, int64_t outputs) {
  Product result;
  const int64_t half = outputs / 2;
  for (size_t row = 0; row < product.value.size(); row += outputs) {
    for (int64_t n = 0; n < half; n++) {
      const double gate = product.value[row + n], up = product.value[row + half + n];
      result.value.push_back(gate / (1 + std::exp(-gate)) * up);
      // d(silu) is at most 1.1 times d(gate).
      const double errors = 1.1 * product.magnitude[row + n] * std::fabs(up);
      result.magnitude.push_back(errors + product.magnitude[row + half + n] * std::fabs(gate));
    }
  }
  return result;
}

}  // namespace check
