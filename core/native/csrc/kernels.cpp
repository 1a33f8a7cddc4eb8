// Small kernels and attention on their own, for models that are not made of whole decoder layers.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention.h"
#include "exponential.h"
#include "norm.h"
#include "pages.h"
#include "rotary.h"
#include "team.h"
#include "workspace.h"

namespace core {
namespace {

// Calls work(row) for every row, shared out among threads in pieces that are worth handing out.
template <typename F>
void each_row(int64_t rows, int64_t width, F work) {
  const int64_t at_once = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
  if (rows <= at_once) {
    for (int64_t row = 0; row < rows; ++row) work(row);
    return;
  }
  together([&](Team& team) {
    team.each((rows + at_once - 1) / at_once, [&](int64_t i) {
      const int64_t end = std::min(rows, (i + 1) * at_once);
      for (int64_t row = i * at_once; row < end; ++row) work(row);
    });
  });
}

// Calls work(T()) for the model's type.
template <typename F>
void with_type(int32_t dtype, F work) {
  if (dtype == kModelBfloat16)
    work(bfloat16());
  else
    work(float());
}

template <typename T>
void attend_step(const AttentionShape& shape, const Step& step, const Cache& cache, const T* query,
                 int64_t query_stride, T* output) {
  const int64_t pieces = step.num_partials * shape.kv_heads;
  Parts shared_size(nullptr), own_size(nullptr);
  shared_size.take<float>(partials_floats(shape, step));
  shared_size.take<std::atomic<int32_t>>(pieces);
  AttentionScratch<T>(own_size, shape);
  char* memory = static_cast<char*>(workspace().at_least(shared_size.used() + threads_at_most() * own_size.used()));
  Parts parts(memory);
  float* partials = parts.take<float>(partials_floats(shape, step));
  std::atomic<int32_t>* finished = parts.take<std::atomic<int32_t>>(pieces);
  for (int64_t i = 0; i < pieces; ++i) finished[i].store(0, std::memory_order_relaxed);
  const AttentionCall<T> call = {shape, step, cache, query, query_stride, output, partials, finished};
  together([&](Team& team) {
    Parts rest(memory + shared_size.used() + team.rank * own_size.used());
    attend(team, call, AttentionScratch<T>(rest, shape));
  });
}

template <typename T>
void write_rows(const AttentionShape& shape, const Step& step, const Cache& cache, const T* key, int64_t key_stride,
                const T* value, int64_t value_stride) {
  const int64_t dim = shape.head_dim;
  each_row(step.rows, 2 * shape.kv_heads * dim, [&](int64_t row) {
    for (int64_t head = 0; head < shape.kv_heads; ++head)
      store_token(shape, cache, head, step.slots[row], key + row * key_stride + head * dim,
                  value + row * value_stride + head * dim);
  });
}

template <typename T>
void silu_and_mul_row(const T* gate, const T* up, int64_t width, T* y) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    put(y + i, rounded<T>(silu<T>(load(gate + i))) * load(up + i));
  }
  for (; i < width; ++i) {
    const float x = widen(gate[i]);
    y[i] = narrow<T>(widen(narrow<T>(x / (1.0f + std::exp(-x)))) * widen(up[i]));
  }
}

// The first of the largest elements; the first NaN where there is one.
template <typename T>
int64_t argmax_row(const T* x, int64_t width) {
  int64_t best = 0, i = 0;
  if (width >= kLanes) {
    Vector most = load(x), odd = most * 0.0f;  // infinities count as odd too: then every element is looked at
    Integers found = {};                       // which vector a lane's largest element is in
    for (i = kLanes; i + kLanes <= width; i += kLanes) {
      const Vector v = load(x + i);
      odd += v * 0.0f;
      found = v > most ? Integers{} + static_cast<int32_t>(i / kLanes) : found;
      most = v > most ? v : most;
    }
    if (sum(odd) == 0.0f) {
      const auto at = [&](int64_t lane) { return found[lane] * int64_t{kLanes} + lane; };
      for (int64_t lane = 1; lane < kLanes; ++lane)
        if (most[lane] > most[best] || (most[lane] == most[best] && at(lane) < at(best))) best = lane;
      best = at(best);
    } else {
      i = 0;
    }
  }
  for (; i < width; ++i) {
    const float v = widen(x[i]);
    if (std::isnan(v)) return i;
    if (v > widen(x[best])) best = i;
  }
  return best;
}

}  // namespace
}  // namespace core

using namespace core;

// Cuts the step's attention into tasks; step->tasks has room for `tokens + sum of lengths / 256` of them.
extern "C" void core_plan_attention(const AttentionShape* shape, Step* step) {
  plan_attention(*shape, *step, threads_at_most());
}

// key, value  rows of [kv_heads, head_dim], their strides in elements
extern "C" void core_write_cache(const AttentionShape* shape, const Step* step, const Cache* cache, const void* key,
                                 int64_t key_stride, const void* value, int64_t value_stride) {
  with_type(shape->dtype, [&](auto zero) {
    typedef decltype(zero) T;
    write_rows(*shape, *step, *cache, static_cast<const T*>(key), key_stride, static_cast<const T*>(value),
               value_stride);
  });
}

// query  rows of [heads, head_dim], the stride in elements; output [rows, heads, head_dim]
extern "C" void core_attend(const AttentionShape* shape, const Step* step, const Cache* cache, const void* query,
                            int64_t query_stride, void* output) {
  with_type(shape->dtype, [&](auto zero) {
    typedef decltype(zero) T;
    attend_step(*shape, *step, *cache, static_cast<const T*>(query), query_stride, static_cast<T*>(output));
  });
}

// x, y [rows, width], weight [width]
extern "C" void core_rms_norm(int32_t dtype, const void* x, const void* weight, float eps, int64_t rows, int64_t width,
                              void* y) {
  with_type(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    each_row(rows, width, [&](int64_t row) {
      normalize(static_cast<const T*>(x) + row * width, static_cast<const T*>(weight), eps, width,
                static_cast<T*>(y) + row * width);
    });
  });
}

// total = x + residual, y its norm; all [rows, width]
extern "C" void core_add_rms_norm(int32_t dtype, const void* x, const void* residual, const void* weight, float eps,
                                  int64_t rows, int64_t width, void* y, void* total) {
  with_type(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    each_row(rows, width, [&](int64_t row) {
      T* sum = static_cast<T*>(total) + row * width;
      add(static_cast<const T*>(x) + row * width, static_cast<const T*>(residual) + row * width, width, sum);
      normalize(sum, static_cast<const T*>(weight), eps, width, static_cast<T*>(y) + row * width);
    });
  });
}

// x  rows of [heads, dim], the stride in elements; y [rows, heads, dim]; cos, sin [rows, half]
extern "C" void core_rotary(int32_t dtype, const void* x, int64_t stride, const void* cos, const void* sin,
                            int64_t rows, int64_t heads, int64_t dim, int64_t half, void* y) {
  with_type(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    each_row(rows, heads * dim, [&](int64_t row) {
      for (int64_t head = 0; head < heads; ++head)
        rotate(static_cast<const T*>(x) + row * stride + head * dim, static_cast<const T*>(cos) + row * half,
               static_cast<const T*>(sin) + row * half, half, dim, static_cast<T*>(y) + (row * heads + head) * dim);
    });
  });
}

// x [rows, 2 * width] -> y [rows, width]
extern "C" void core_silu_and_mul(int32_t dtype, const void* x, int64_t rows, int64_t width, void* y) {
  with_type(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    each_row(rows, width, [&](int64_t row) {
      const T* gate = static_cast<const T*>(x) + row * 2 * width;
      silu_and_mul_row(gate, gate + width, width, static_cast<T*>(y) + row * width);
    });
  });
}

// x [rows, width] -> the largest element of each row, and which it is
extern "C" void core_argmax(int32_t dtype, const void* x, int64_t rows, int64_t width, void* largest,
                            int64_t* token_ids) {
  with_type(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    each_row(rows, width, [&](int64_t row) {
      const T* values = static_cast<const T*>(x) + row * width;
      token_ids[row] = argmax_row(values, width);
      static_cast<T*>(largest)[row] = values[token_ids[row]];
    });
  });
}
