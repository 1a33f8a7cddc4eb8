// vector.h and team.h: conversions to the bit, the exponential, and every task done once.

#include <atomic>

#include "check.h"
#include "team.h"

namespace check {

using core::bfloat16;
using core::kLanes;

static void conversions() {
  Random random(1);
  const std::vector<float> from = random.values<float>(kLanes * 64, 1e3f);
  std::vector<bfloat16> to(from.size());
  double wrong = 0;
  for (size_t i = 0; i < from.size(); i += kLanes) core::store(&to[i], core::load(&from[i]));
  for (size_t i = 0; i < from.size(); i++) {
    // Nearest, ties to even: the reference rounds in double precision, which holds every bit of a float.
    int exponent;
    const double mantissa = std::frexp(from[i], &exponent) * 256;
    const double expected = std::ldexp(std::nearbyint(mantissa), exponent - 8);
    wrong += core::widen(to[i]) != expected || core::narrow<bfloat16>(from[i]).bits != to[i].bits;
  }
  report("float to bfloat16, differing values", wrong, 0);
}

static void exponentials() {
  double largest = 0;
  for (float x = -86.0f; x < 88.0f; x += 0.37f) {
    const core::Vector v = core::exponential(core::Vector{} + x);
    // The argument is rounded once more on its way: its error grows with it.
    const double units = (4 + std::fabs(x)) * std::ldexp(1.0, -24);
    for (int i = 0; i < kLanes; i++) largest = std::fmax(largest, std::fabs(v[i] / std::exp(double{x}) - 1) / units);
  }
  report("exponential, in roundings of the argument", largest, 1.5);
  report("exponential of -inf", std::fabs(core::exponential(core::Vector{} - HUGE_VALF)[3]), 1e-37);
}

static void sums() {
  core::Vector v{};
  for (int i = 0; i < kLanes; i++) v[i] = static_cast<float>(1 << i);
  report("sum of a vector", std::fabs(core::sum(v) - ((1 << kLanes) - 1)), 0);
}

static void teams() {
  constexpr int64_t kTasks = 1000;
  std::vector<std::atomic<int>> done(kTasks);
  std::atomic<int64_t> early{0};
  core::together([&](core::Team& team) {
    for (int phase = 0; phase < core::kPhases; phase++) {
      team.each(kTasks, [&](int64_t i) {
        early += done[i] != phase;
        done[i]++;
      });
      team.wait();
    }
  });
  int64_t wrong = early;
  for (const auto& count : done) wrong += count != core::kPhases;
  report("tasks not done once, or before their time", static_cast<double>(wrong), 0);
}

void vectors() {
  conversions();
  exponentials();
  sums();
  teams();
}

}  // namespace check
