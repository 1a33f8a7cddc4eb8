// What the checks share: reproducible inputs, and one line per result.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "vector.h"

namespace check {

// A linear congruential generator: the same numbers on every machine and library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}

  // Between -1 and 1.
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int64_t>(state_ >> 33)) * (1.0f / (1u << 30)) - 1.0f;
  }

  template <typename T>
  std::vector<T> values(int64_t count, float scale = 1.0f) {
    std::vector<T> made(count);
    for (T& value : made) value = core::narrow<T>(next() * scale);
    return made;
  }

 private:
  uint64_t state_;
};

// The largest difference between what was computed and what is right. NaN counts as infinitely wrong.
template <typename T>
double largest_error(const std::vector<T>& actual, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    const double error = std::fabs(static_cast<double>(core::widen(actual[i])) - expected[i]);
    largest = error > largest || std::isnan(error) ? (std::isnan(error) ? HUGE_VAL : error) : largest;
  }
  return largest;
}

// Prints a line, and remembers a failure.
void report(const std::string& name, double error, double allowed);

// Each file of checks.
void vectors();
void linears();
void attentions();
void layers();

}  // namespace check
