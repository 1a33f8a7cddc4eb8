// vector.h, isa.h, exponential.h and team.h: conversions to the bit, powers, and every task done once.

#include <atomic>

#include "check.h"
#include "exponential.h"
#include "isa.h"
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

// While it lives, numbers below the normal range are zero to this processor, as torch has it in some threads.
class Flushing {
 public:
#if defined(__x86_64__)
  Flushing() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~Flushing() { __builtin_ia32_ldmxcsr(before_); }

 private:
  const unsigned before_;
#elif defined(__aarch64__)
  Flushing() {
    asm volatile("mrs %0, fpcr" : "=r"(before_)::"memory");
    asm volatile("msr fpcr, %0" ::"r"(before_ | 1 << 24) : "memory");
  }
  ~Flushing() { asm volatile("msr fpcr, %0" ::"r"(before_) : "memory"); }

 private:
  uint64_t before_;
#else
  ~Flushing() {}
#endif
};

typedef core::isa::Floats Widen(const uint16_t* from);

__attribute__((noinline)) static void widen_all(Widen* widen, const std::vector<uint16_t>& from, uint32_t* to) {
  constexpr size_t kCount = sizeof(core::isa::Floats) / sizeof(float);
  for (size_t i = 0; i < from.size(); i += kCount) {
    const core::isa::Floats wide = widen(&from[i]);
    std::memcpy(to + i, &wide, sizeof(wide));
  }
}

// What a float16 stands for, as the bits of a float; one of many for those that are no number.
static uint32_t half_value(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double magnitude = exponent == 31 ? (fraction ? NAN : HUGE_VAL)
                           : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                          : std::ldexp(fraction, -24);
  return core::bits_of<uint32_t>(static_cast<float>(half & 0x8000 ? -magnitude : magnitude));
}

// Every float16 there is.
static void halves(const std::string& name, Widen* widen) {
  std::vector<uint16_t> all(65536);
  std::vector<uint32_t> usual(all.size()), flushed(all.size());
  for (size_t i = 0; i < all.size(); i++) all[i] = static_cast<uint16_t>(i);
  widen_all(widen, all, usual.data());
  {
    const Flushing flushing;
    widen_all(widen, all, flushed.data());
  }
  double wrong = 0, wrong_flushed = 0;
  for (uint16_t half : all) {
    const uint32_t right = half_value(half);
    const bool no_number = (right & 0x7fffffffu) > 0x7f800000u;
    const auto same = [&](uint32_t bits) { return no_number ? (bits & 0x7fffffffu) > 0x7f800000u : bits == right; };
    wrong += !same(usual[half]), wrong_flushed += !same(flushed[half]);
  }
  report("float16 to float, " + name + ", differing values", wrong, 0);
  report("float16 to float, " + name + ", while small numbers are flushed", wrong_flushed, 0);
}

template <typename T>
static void powers(const std::string& name, double roundings, double silu_roundings) {
  const double unit = sizeof(T) == sizeof(float) ? std::ldexp(1.0, -24) : std::ldexp(1.0, -9);
  double largest = 0, largest_silu = 0;
  for (float x = -126.0f; x < 126.9f; x += 0.37f) {
    const core::Vector power = core::power_of_two<T>(core::Vector{} + x), silu = core::silu<T>(core::Vector{} + x);
    // The argument of e^x is rounded on its way: its error grows with it.
    const double right = x / (1 + std::exp(-double{x})), allowed = unit + std::fabs(x) * std::ldexp(1.0, -24);
    for (int i = 0; i < kLanes; i++) {
      largest = std::fmax(largest, std::fabs(power[i] / std::exp2(double{x}) - 1) / unit);
      if (x > -87) largest_silu = std::fmax(largest_silu, std::fabs(silu[i] / right - 1) / allowed);
    }
  }
  report("powers of two for " + name + ", in roundings", largest, roundings);
  report("silu for " + name + ", in roundings", largest_silu, silu_roundings);
  report("2^-inf for " + name, std::fabs(core::power_of_two<T>(core::Vector{} - HUGE_VALF)[3]), 0);
  report("silu far down, for " + name, std::fabs(core::silu<T>(core::Vector{} - 1e6f)[3]), 1e-30);
  const bool kept = std::isnan(core::power_of_two<T>(core::Vector{} + NAN)[3]) &&
                    std::isnan(core::silu<T>(core::Vector{} + NAN)[3]);
  report("no number stays none, for " + name, kept ? 0 : 1, 0);
}

static void pairs() {
  Random random(5);
  double largest = 0;
  for (int round = 0; round < 1000; round++) {
    core::Vector even{}, odd{};
    for (int i = 0; i < kLanes; i++) even[i] = random.next() * 100, odd[i] = random.next() * 100;
    const core::Bits made = core::isa::to_pairs(even, odd);
    for (int i = 0; i < kLanes; i++) {
      const float low = core::widen(core::bfloat16{static_cast<uint16_t>(made[i])});
      const float high = core::widen(core::bfloat16{static_cast<uint16_t>(made[i] >> 16)});
      largest = std::fmax(largest, std::fabs(low / even[i] - 1));
      largest = std::fmax(largest, std::fabs(high / odd[i] - 1));
    }
  }
  report("pairs of bfloat16", largest, std::ldexp(1.0, -8));
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
  halves("this instruction set", core::isa::widen_halves);
  halves("in vector types alone", core::portable::widen_halves<core::isa::kWidth>);
  powers<float>("float", 4, 4);
  powers<core::bfloat16>("bfloat16", 0.1, 0.1);
  pairs();
  sums();
  teams();
}

}  // namespace check
