// layer.h: a whole decoder layer against the same in double precision.

#include <memory>

#include "layer.h"
#include "paged.h"
#include "stored.h"

extern "C" {
void core_decoder_layer(const core::DecoderLayer* layer, const core::Step* step, core::Cache* cache, void* x,
                        void* residual, void* stream, const int64_t* wanted, int64_t count);
}

namespace check {

using core::AttentionShape;
using core::bfloat16;

typedef std::vector<double> Numbers;

constexpr int64_t kHidden = 128, kIntermediate = 192, kHalf = 12;  // a head of 32 is rotated in part
constexpr float kEps = 1e-5f;

// One layer's weights in the stored format, packed, and as numbers.
template <typename T>
struct LayerWeights {
  LayerWeights(const Storage& storage, const AttentionShape& shape, bool extras, Random& random)
      : qkv(stored(storage, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, kHidden, 20)),
        output(stored(storage, kHidden, shape.heads * shape.head_dim, 21)),
        gate_up(stored(storage, 2 * kIntermediate, kHidden, 22)),
        down(stored(storage, kHidden, kIntermediate, 23)),
        qkv_bias(random.values<float>(extras ? qkv.outputs : 0)),
        output_bias(random.values<float>(extras ? kHidden : 0)),
        input_norm(random.values<T>(kHidden)),
        mlp_norm(random.values<T>(kHidden)),
        query_norm(random.values<T>(shape.head_dim)),
        key_norm(random.values<T>(shape.head_dim)),
        packed_qkv(qkv, qkv_bias, false),
        packed_output(output, output_bias, false),
        packed_gate_up(gate_up, {}, true),
        packed_down(down, {}, false) {
    layer = {shape, kHidden, kEps, input_norm.data(), extras ? query_norm.data() : nullptr,
             extras ? key_norm.data() : nullptr, mlp_norm.data(), &packed_qkv.linear, &packed_output.linear,
             &packed_gate_up.linear, &packed_down.linear};
  }

  Stored qkv, output, gate_up, down;
  std::vector<float> qkv_bias, output_bias;
  std::vector<T> input_norm, mlp_norm, query_norm, key_norm;
  Packed packed_qkv, packed_output, packed_gate_up, packed_down;
  core::DecoderLayer layer;
};

template <typename T>
static void normalize(double* row, int64_t width, const std::vector<T>& weight) {
  double squares = 0;
  for (int64_t i = 0; i < width; i++) squares += row[i] * row[i];
  for (int64_t i = 0; i < width; i++) row[i] *= core::widen(weight[i]) / std::sqrt(squares / width + kEps);
}

static void rotate(double* head, const double* cos, const double* sin) {
  for (int64_t i = 0; i < kHalf; i++) {
    const double a = head[i], b = head[kHalf + i];
    head[i] = a * cos[i] - b * sin[i], head[kHalf + i] = b * cos[i] + a * sin[i];
  }
}

// What comes before attention: of a row of the stream, its queries, keys and values behind one another.
template <typename T>
static Numbers projected(const LayerWeights<T>& weights, Numbers stream, const double* cos, const double* sin) {
  const AttentionShape& shape = weights.layer.attention;
  normalize(stream.data(), kHidden, weights.input_norm);
  Numbers qkv = product(stream, weights.qkv, weights.qkv_bias).value;
  for (int64_t head = 0; head < shape.heads + shape.kv_heads; head++) {
    double* at = &qkv[head * shape.head_dim];
    const std::vector<T>& norm = head < shape.heads ? weights.query_norm : weights.key_norm;
    if (weights.layer.query_norm) normalize(at, shape.head_dim, norm);
    rotate(at, cos, sin);
  }
  return qkv;
}

// What comes after attention: adds to the stream, and returns what the layer adds at its end.
template <typename T>
static Numbers finished(const LayerWeights<T>& weights, const Numbers& attention, double* stream) {
  const Numbers added = product(attention, weights.output, weights.output_bias).value;
  for (int64_t i = 0; i < kHidden; i++) stream[i] += added[i];
  Numbers normed(stream, stream + kHidden);
  normalize(normed.data(), kHidden, weights.mlp_norm);
  return product(gated(product(normed, weights.gate_up, {}), 2 * kIntermediate).value, weights.down, {}).value;
}

// A step's inputs, and what is right: the stream and what is added, [rows of sequences, hidden] each.
template <typename T>
struct LayerTrial {
  LayerTrial(const LayerWeights<T>& weights, Paged& paged, bool first, Random& random)
      : history(paged, random),
        x(random.values<T>(paged.step.rows * kHidden)),
        residual(random.values<T>(first ? 0 : paged.step.rows * kHidden)),
        cos(random.values<T>(paged.step.rows * kHalf)),
        sin(random.values<T>(paged.step.rows * kHalf)) {
    paged.step.half = kHalf, paged.step.cos = cos.data(), paged.step.sin = sin.data();
    const AttentionShape& shape = paged.shape;
    const int64_t queries = shape.heads * shape.head_dim, width = history.width();
    Numbers all_queries, cosines = widened(cos), sines = widened(sin);
    std::vector<Numbers> keys, values;
    for (size_t i = 0; i < paged.sequences.size(); i++)
      keys.push_back(widened(history.keys[i])), values.push_back(widened(history.values[i]));
    stream = widened(x);
    for (size_t i = 0; i < residual.size(); i++) stream[i] += core::widen(residual[i]);
    for (size_t row = 0; row < paged.rows.size(); row++) {
      const auto [sequence, position] = paged.rows[row];
      const Numbers input(&stream[row * kHidden], &stream[row * kHidden] + kHidden);
      const Numbers qkv = projected(weights, input, &cosines[row * kHalf], &sines[row * kHalf]);
      all_queries.insert(all_queries.end(), qkv.begin(), qkv.begin() + queries);
      std::copy_n(&qkv[queries], width, &keys[sequence][position * width]);
      std::copy_n(&qkv[queries + width], width, &values[sequence][position * width]);
    }
    for (size_t i = 0; i < keys.size(); i++) keys[i] = history.kept(keys[i]), values[i] = history.kept(values[i]);
    for (size_t row = 0; row < paged.rows.size(); row++) {
      const auto [sequence, position] = paged.rows[row];
      const Numbers attention =
          attended(shape, &all_queries[row * queries], position, keys[sequence], values[sequence]);
      const Numbers last = finished(weights, attention, &stream[row * kHidden]);
      added.insert(added.end(), last.begin(), last.end());
    }
    stream.resize(added.size());
  }

  // Only these rows are asked for.
  void keep(const std::vector<int64_t>& rows) {
    Numbers all_streams, all_added;
    all_streams.swap(stream), all_added.swap(added);
    for (int64_t row : rows) {
      stream.insert(stream.end(), &all_streams[row * kHidden], &all_streams[row * kHidden] + kHidden);
      added.insert(added.end(), &all_added[row * kHidden], &all_added[row * kHidden] + kHidden);
    }
    x.resize(added.size());
  }

  History<T> history;
  std::vector<T> x, residual, cos, sin;
  Numbers stream, added;
};

static double largest(const Numbers& numbers) {
  double most = 0;
  for (double number : numbers) most = std::fmax(most, std::fabs(number));
  return most;
}

template <typename T>
static void layer(const std::string& name, const Storage& storage, std::vector<Sequence> sequences, bool first,
                  bool extras, double allowed, int64_t kept, const std::vector<int64_t>* wanted = nullptr) {
  const int32_t dtype = sizeof(T) == 2 ? core::kModelBfloat16 : core::kModelFloat32;
  const AttentionShape shape = {dtype, 0.17f, 6, 2, 32, 16, 0, kept};
  Paged paged(shape, std::move(sequences));
  Random random(30);
  const LayerWeights<T> weights(storage, shape, extras, random);
  LayerTrial<T> trial(weights, paged, first, random);
  std::vector<T> stream = first ? std::vector<T>(trial.x.size()) : trial.residual;
  core_decoder_layer(&weights.layer, &paged.step, &trial.history.cache, trial.x.data(),
                     first ? nullptr : stream.data(), stream.data(), wanted ? wanted->data() : nullptr,
                     wanted ? wanted->size() : 0);
  if (wanted) trial.keep(*wanted), stream.resize(wanted->size() * kHidden);
  const std::string title = "layer " + storage.name + (sizeof(T) == 2 ? " in bfloat16, " : " in float32, ") +
                            (kept ? "kept in int8, " : "") + name;
  const core::Cache& cache = trial.history.cache;
  const bool in = cache.populated > paged.step.highest_block && cache.populated <= cache.num_blocks;
  report(title + ", pages that are written brought in", in ? 0 : 1, 0);
  report(title + ", stream", largest_error(stream, trial.stream) / largest(trial.stream), allowed);
  report(title + ", added", largest_error(trial.x, trial.added) / largest(trial.added), allowed);
}

template <typename T>
static void steps(const Storage& storage, double allowed, int64_t kept = 0) {
  layer<T>("one token", storage, {{1, 1}}, true, false, allowed, kept);
  layer<T>("one decode in pieces", storage, {{1, 600}}, false, true, allowed, kept);
  layer<T>("two decodes", storage, {{1, 30}, {1, 270}}, false, true, allowed, kept);
  layer<T>("decodes and prompts", storage, {{1, 40}, {1, 300}, {19, 19}, {5, 60}}, false, false, allowed, kept);
  layer<T>("first layer, prompt", storage, {{21, 21}}, true, true, allowed, kept);
  const std::vector<int64_t> last = {0, 1, 20, 25}, turned = {25, 3}, one = {1};
  layer<T>("rows that sample", storage, {{1, 40}, {1, 300}, {19, 19}, {5, 60}}, false, true, allowed, kept, &last);
  layer<T>("rows out of order", storage, {{1, 40}, {1, 300}, {19, 19}, {5, 60}}, true, false, allowed, kept, &turned);
  layer<T>("one row of two", storage, {{2, 9}}, false, false, allowed, kept, &one);
}

void layers() {
  for (const Storage& storage : storages()) {
    // Quantised activations are the larger part of the error of a quantised layer.
    if (storage.name == "float32") steps<float>(storage, 2e-5);
    if (storage.name == "bfloat16") steps<bfloat16>(storage, 4e-2);
    // A key or value that is computed a little differently may be rounded to the next number.
    if (storage.name == "float32") steps<float>(storage, 2e-2, 1);
    if (storage.name == "bfloat16") steps<bfloat16>(storage, 6e-2, 1);
    if (storage.name == "int8" || storage.name == "int4 by 64") steps<float>(storage, 8e-2);
    if (storage.name == "int4 by 32, minimum") steps<bfloat16>(storage, 8e-2);
  }
}

}  // namespace check
