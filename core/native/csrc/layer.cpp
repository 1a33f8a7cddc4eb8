// The phases of a layer, with a barrier wherever one reads what another thread wrote in the one before.

#include "layer.h"

#include <atomic>
#include <cstring>

#include "norm.h"
#include "pages.h"
#include "populate.h"
#include "rotary.h"
#include "team.h"
#include "workspace.h"

namespace core {
namespace {

constexpr int64_t kFewRows = 2;     // every thread computes the norms of so many for itself, which saves a barrier
constexpr int64_t kRowsAtOnce = 8;  // of a norm, handed to a thread together

int64_t largest_prepared(const DecoderLayer& layer, int64_t rows) {
  int64_t bytes = 0;
  for (const Linear* linear : {layer.qkv, layer.output, layer.gate_up, layer.down})
    bytes = std::max(bytes, prepared_bytes(*linear, rows));
  return bytes;
}

// One thread's own memory. rows: the fewest of any product.
template <typename T>
struct Own {
  Own(Parts& parts, const DecoderLayer& layer, int64_t rows)
      : attention(parts, layer.attention),
        normed(parts.take<T>(kFewRows * layer.hidden)),
        prepared(parts.take<char>(rows > kFewRows ? 0 : largest_prepared(layer, kFewRows))) {}

  AttentionScratch<T> attention;
  T* normed;
  char* prepared;
};

// Memory of one call, that its threads share. picked: how many rows are picked out.
template <typename T>
struct Shared {
  Shared(Parts& parts, const DecoderLayer& layer, const Step& step, int64_t picked) {
    const AttentionShape& shape = layer.attention;
    const int64_t rows = step.rows, width = shape.heads * shape.head_dim;
    stream = parts.take<T>(kFewRows * layer.hidden);
    normed = parts.take<T>(rows * layer.hidden);
    qkv = parts.take<T>(rows * layer.qkv->outputs);
    attended = parts.take<T>(rows * width);
    projected = parts.take<T>(rows * layer.hidden);
    gated = parts.take<T>(rows * (layer.gate_up->outputs / 2));
    prepared = parts.take<char>(rows > kFewRows ? largest_prepared(layer, rows) : 0);
    partials = parts.take<float>(partials_floats(shape, step));
    finished = parts.take<std::atomic<int32_t>>(step.num_partials * shape.kv_heads);
    picked_attended = parts.take<T>(picked * width);
    picked_stream = parts.take<T>(picked * layer.hidden);
  }

  T *stream, *normed, *qkv, *attended, *projected, *gated, *picked_attended, *picked_stream;
  char* prepared;
  float* partials;
  std::atomic<int32_t>* finished;
};

// One call's arguments. `residual` is null where `x` is the stream itself; the stream goes to `stream`.
template <typename T>
struct LayerCall {
  const DecoderLayer& layer;
  const Step& step;
  const Cache& cache;
  T* x;
  T* residual;
  T* stream;
  Wanted wanted;
  Fresh fresh;

  int64_t results() const { return wanted.all() ? step.rows : wanted.count; }
  int64_t picked() const { return wanted.all() ? 0 : wanted.count; }
};

// x as `linear` multiplies it. Few rows are prepared by every thread for itself; x may then be its own.
template <typename T>
const void* prepare_rows(Team& team, const Linear& linear, const T* x, int64_t rows, const Shared<T>& shared,
                         const Own<T>& own) {
  if (rows <= kFewRows) {
    Phases phases;
    Team alone(phases, 0, 1);
    return prepare(alone, linear, x, rows, own.prepared);
  }
  const void* prepared = prepare(team, linear, x, rows, shared.prepared);
  if (prepared != x) team.wait();
  return prepared;
}

// The sum of `x` and `stream` goes to `total`, and its norm is returned as `linear` multiplies it. Few rows are
// summed by every thread and kept by the first, so `total` must then be neither `x` nor `stream`.
template <typename T>
const void* add_and_norm(Team& team, const T* x, const T* stream, T* total, const void* weight, const Linear& linear,
                         int64_t rows, const LayerCall<T>& call, const Shared<T>& shared, const Own<T>& own) {
  const int64_t hidden = call.layer.hidden;
  const bool few = rows <= kFewRows;
  T* normed = few ? own.normed : shared.normed;
  const auto norm_row = [&](int64_t row, T* sum) {
    const int64_t at = row * hidden;
    if (stream != nullptr) add(x + at, stream + at, hidden, sum);
    normalize(stream != nullptr ? sum : x + at, static_cast<const T*>(weight), call.layer.eps, hidden, normed + at);
  };
  if (few) {
    if (team.rank == 0 && stream != nullptr) add(x, stream, rows * hidden, total);
    for (int64_t row = 0; row < rows; ++row) norm_row(row, normed + row * hidden);
  } else {
    team.each((rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t i) {
      const int64_t end = std::min(rows, (i + 1) * kRowsAtOnce);
      for (int64_t row = i * kRowsAtOnce; row < end; ++row) norm_row(row, total + row * hidden);
    });
    team.wait();
  }
  return prepare_rows(team, linear, normed, rows, shared, own);
}

// A product whose input lies in shared memory, written before the last barrier.
template <typename T>
void project(Team& team, const Linear& linear, const T* x, int64_t rows, T* y, const Shared<T>& shared,
             const Own<T>& own) {
  multiply(team, linear, prepare_rows(team, linear, x, rows, shared, own), rows, y);
}

// Writes a token's key, rotated, and value of one head into the cache.
template <typename T>
void write_cache(const LayerCall<T>& call, const Rotation<T>& rotation, int64_t row, int64_t head, const T* qkv) {
  const AttentionShape& shape = call.layer.attention;
  const int64_t dim = shape.head_dim;
  T key[kMaxHeadDim];
  rotation.apply(qkv + (shape.heads + head) * dim, static_cast<const T*>(call.layer.key_norm), row, key);
  store_token(shape, call.cache, head, call.step.slots[row], key,
              qkv + (shape.heads + shape.kv_heads + head) * dim);
}

// From projections to attended rows. One decode on its own needs no barrier between writing and reading: the task
// that sees its newest key writes it.
template <typename T>
void rotate_and_attend(Team& team, const LayerCall<T>& call, const Shared<T>& shared, const Own<T>& own) {
  const AttentionShape& shape = call.layer.attention;
  const Step& step = call.step;
  const int64_t width = call.layer.qkv->outputs, kv_heads = shape.kv_heads;
  const Rotation<T> rotation = {static_cast<const T*>(step.cos), static_cast<const T*>(step.sin), step.half,
                                shape.head_dim, call.layer.eps};
  const AttentionCall<T> attention = {shape,           step,            call.cache,      shared.qkv,
                                      width,           shared.attended, shared.partials, shared.finished,
                                      call.wanted,     &rotation,       static_cast<const T*>(call.layer.query_norm)};
  if (call.fresh.any()) {
    team.each(kv_heads, [&](int64_t head) { call.fresh.template populate_head<T>(shape, call.cache, head); });
    team.wait();
  }
  if (step.rows == 1 && step.num_decodes == 1) {
    team.each(step.num_tasks * kv_heads, [&](int64_t i) {
      const Task& task = step.tasks[i / kv_heads];
      if (task.part == task.parts - 1) write_cache(call, rotation, 0, i % kv_heads, shared.qkv);
      attend_task(attention, task, i % kv_heads, own.attention);
    });
    return;
  }
  team.each((step.rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t i) {
    const int64_t end = std::min(step.rows, (i + 1) * kRowsAtOnce);
    for (int64_t row = i * kRowsAtOnce; row < end; ++row) {
      const T* qkv = shared.qkv + row * width;
      bring_closer(qkv + kRowsAhead * width + shape.heads * shape.head_dim, 2 * kv_heads * shape.head_dim * sizeof(T));
      for (int64_t head = 0; head < kv_heads; ++head) write_cache(call, rotation, row, head, qkv);
    }
  });
  team.wait();
  if (call.results() > 0) attend(team, attention, own.attention);
}

// Of attended rows and of the stream, those that the rest of the layer goes on with.
template <typename T>
void pick(Team& team, const LayerCall<T>& call, const T* stream, const Shared<T>& shared) {
  const int64_t width = call.layer.attention.heads * call.layer.attention.head_dim, hidden = call.layer.hidden;
  team.each(call.wanted.count, [&](int64_t i) {
    const int64_t row = call.wanted.rows[i];
    std::memcpy(shared.picked_attended + i * width, shared.attended + row * width, width * sizeof(T));
    std::memcpy(shared.picked_stream + i * hidden, stream + row * hidden, hidden * sizeof(T));
  });
  team.wait();
}

template <typename T>
void run_layer(Team& team, const LayerCall<T>& call, const Shared<T>& shared, const Own<T>& own) {
  const DecoderLayer& layer = call.layer;
  const int64_t rows = call.step.rows, results = call.results();
  // Where the stream is between the two additions.
  T* middle = call.residual == nullptr ? call.x : rows <= kFewRows ? shared.stream : call.stream;
  const void* input =
      add_and_norm<T>(team, call.x, call.residual, middle, layer.input_norm, *layer.qkv, rows, call, shared, own);
  multiply(team, *layer.qkv, input, rows, shared.qkv);
  team.wait();
  rotate_and_attend(team, call, shared, own);
  if (results == 0) return;
  team.wait();
  const T* attended = shared.attended;
  if (!call.wanted.all()) {
    pick(team, call, middle, shared);
    attended = shared.picked_attended, middle = shared.picked_stream;
  }
  project<T>(team, *layer.output, attended, results, shared.projected, shared, own);
  team.wait();
  input = add_and_norm<T>(team, shared.projected, middle, call.stream, layer.mlp_norm, *layer.gate_up, results, call,
                          shared, own);
  multiply(team, *layer.gate_up, input, results, shared.gated);
  team.wait();
  project<T>(team, *layer.down, shared.gated, results, call.x, shared, own);
}

template <typename T>
void decoder_layer(const LayerCall<T>& call) {
  const int64_t fewest = std::min(call.step.rows, call.results());
  Parts shared_size(nullptr), own_size(nullptr);
  Shared<T>(shared_size, call.layer, call.step, call.picked());
  Own<T>(own_size, call.layer, fewest);
  char* memory = static_cast<char*>(workspace().at_least(shared_size.used() + threads_at_most() * own_size.used()));
  Parts parts(memory);
  const Shared<T> shared(parts, call.layer, call.step, call.picked());
  for (int64_t i = 0; i < call.step.num_partials * call.layer.attention.kv_heads; ++i)
    shared.finished[i].store(0, std::memory_order_relaxed);
  together([&](Team& team) {
    Parts rest(memory + shared_size.used() + team.rank * own_size.used());
    run_layer(team, call, shared, Own<T>(rest, call.layer, fewest));
  });
}

}  // namespace
}  // namespace core

// x [rows, hidden] is what the layer before added, and is overwritten with what this one adds. The residual stream
// comes in `residual`, null in the first layer, and goes to `stream`, which may be the same memory. Only the rows in
// `wanted` get there, in its order, from row 0 on; null: all. They are distinct.
extern "C" void core_decoder_layer(const core::DecoderLayer* layer, const core::Step* step, core::Cache* cache,
                                   void* x, void* residual, void* stream, const int64_t* wanted, int64_t count) {
  if (step->rows == 0) return;
  const core::Wanted rows = core::wanted_rows(wanted, count, step->rows);
  const core::Fresh fresh(*step, *cache);
  const auto run = [&](auto zero) {
    typedef decltype(zero) T;
    core::decoder_layer<T>({*layer, *step, *cache, static_cast<T*>(x), static_cast<T*>(residual),
                            static_cast<T*>(stream), rows, fresh});
  };
  if (layer->attention.dtype == core::kModelBfloat16)
    run(core::bfloat16());
  else
    run(float());
  cache->populated = fresh.end;
}
