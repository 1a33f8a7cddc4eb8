// linear.h: every format with few and many rows, padding, bias, gates, and rows that are not finite.

#include "stored.h"

extern "C" {
int64_t linear_scratch(const core::Linear* linear, int64_t rows);
void linear_float32(const core::Linear* linear, const float* x, int64_t rows, float* y, void* scratch);
void linear_bfloat16(const core::Linear* linear, const core::bfloat16* x, int64_t rows, core::bfloat16* y,
                     void* scratch);
}

namespace check {

using core::bfloat16;

constexpr double kAllowed = 4e-6;  // of the magnitude of what is summed

static void call(const core::Linear& linear, const float* x, int64_t rows, float* y, void* scratch) {
  linear_float32(&linear, x, rows, y, scratch);
}
static void call(const core::Linear& linear, const bfloat16* x, int64_t rows, bfloat16* y, void* scratch) {
  linear_bfloat16(&linear, x, rows, y, scratch);
}

template <typename T>
static std::vector<T> multiplied(const core::Linear& linear, const std::vector<T>& x, int64_t rows) {
  Scratch scratch(linear_scratch(&linear, rows));
  std::vector<T> y(rows * (linear.gated ? linear.outputs / 2 : linear.outputs), core::narrow<T>(7e7f));
  call(linear, x.data(), rows, y.data(), scratch.data());
  return y;
}

template <typename T>
static std::string named(const Storage& storage, const std::string& what) {
  return "linear " + storage.name + (sizeof(T) == 2 ? " in bfloat16, " : " in float32, ") + what;
}

template <typename T>
static void products(const Storage& storage, int64_t outputs, int64_t inputs, bool gate, bool with_bias) {
  const Stored weight = stored(storage, outputs, inputs, 3);
  Random random(4);
  const std::vector<float> bias = random.values<float>(with_bias ? outputs : 0);
  const Packed packed(weight, bias, gate);
  for (int64_t rows : {1, 3, 12, 17}) {
    const std::vector<T> x = activations<T>(storage, random, rows, inputs);
    Product expected = product(as_multiplied(storage, x, inputs), weight, bias);
    if (gate) expected = gated(expected, outputs);
    const std::string shape = std::to_string(rows) + " x " + std::to_string(inputs) + " x " + std::to_string(outputs) +
                              (gate ? ", gated" : "") + (with_bias ? ", bias" : "");
    report(named<T>(storage, shape), relative_error(multiplied(packed.linear, x, rows), expected), kAllowed);
  }
}

// So many inputs that the rows are computed in blocks, and so long rows that they are copied apart.
template <typename T>
static void many_rows(const Storage& storage) {
  const int64_t rows = 61, inputs = 4096, outputs = 48;
  const Stored weight = stored(storage, outputs, inputs, 5);
  const Packed packed(weight, {}, false);
  Random random(6);
  const std::vector<T> x = activations<T>(storage, random, rows, inputs);
  const std::vector<T> y = multiplied(packed.linear, x, rows);
  // A few rows are enough to see that none is mixed up with another.
  double largest = 0, moved = 0;
  for (int64_t row : {0, 12, 37, 60}) {
    const std::vector<T> alone(x.begin() + row * inputs, x.begin() + (row + 1) * inputs);
    const std::vector<T> given(y.begin() + row * outputs, y.begin() + (row + 1) * outputs);
    largest = std::fmax(largest, relative_error(given, product(as_multiplied(storage, alone, inputs), weight, {})));
    const std::vector<T> single = multiplied(packed.linear, alone, 1);
    moved += std::memcmp(single.data(), given.data(), outputs * sizeof(T)) != 0;
  }
  report(named<T>(storage, "61 x 4096 x 48"), largest, kAllowed);
  report(named<T>(storage, "rows that change with the rows beside them"), moved, 0);
}

template <typename T>
static void not_finite(const Storage& storage) {
  const int64_t rows = 4, inputs = 128, outputs = 33;
  const Packed packed(stored(storage, outputs, inputs, 7), {}, false);
  Random random(8);
  std::vector<T> x = activations<T>(storage, random, rows, inputs);
  x[inputs + 5] = core::narrow<T>(NAN), x[2 * inputs + 100] = core::narrow<T>(HUGE_VALF);
  const std::vector<T> y = multiplied(packed.linear, x, rows);
  double wrong = 0;
  for (int64_t i = 0; i < rows * outputs; i++) {
    const bool finite = std::isfinite(core::widen(y[i]));
    wrong += finite != (i / outputs == 0 || i / outputs == 3);
  }
  report(named<T>(storage, "rows wrongly finite or not"), wrong, 0);
}

template <typename T>
static void all(const Storage& storage) {
  products<T>(storage, 72, 128, false, true);
  products<T>(storage, 80, 128, true, false);
  if (!storage.group) products<T>(storage, 31, 75, false, false);  // nothing divides by anything
  if (!storage.group) products<T>(storage, 50, 203, true, true);
  if (storage.group == 0 || storage.group == 64) many_rows<T>(storage);
  not_finite<T>(storage);
}

void linears() {
  for (const Storage& storage : storages()) {
    if (storage.format != core::kBfloat16) all<float>(storage);
    if (storage.format != core::kFloat32) all<bfloat16>(storage);
  }
}

}  // namespace check
