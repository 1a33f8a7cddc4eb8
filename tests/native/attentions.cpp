// attention.h: decodes and prompts in one ragged batch, grouped heads, windows, on a cache full of NaN.

#include "paged.h"

extern "C" {
void core_write_cache(const core::AttentionShape* shape, const core::Step* step, const core::Cache* cache,
                      const void* keys, int64_t key_stride, const void* values, int64_t value_stride);
void core_attend(const core::AttentionShape* shape, const core::Step* step, const core::Cache* cache,
                 const void* query, int64_t query_stride, void* output);
}

namespace check {

using core::AttentionShape;
using core::bfloat16;

// New tokens as a projection leaves them: queries, keys and values of a row behind one another.
template <typename T>
static std::vector<T> projected(const Paged& paged, const History<T>& history, Random& random) {
  const int64_t queries = paged.shape.heads * paged.shape.head_dim, width = history.width();
  std::vector<T> rows = random.values<T>(paged.step.rows * (queries + 2 * width));
  for (size_t row = 0; row < paged.rows.size(); row++) {
    const auto [sequence, position] = paged.rows[row];
    T* to = &rows[row * (queries + 2 * width) + queries];
    std::memcpy(to, &history.keys[sequence][position * width], width * sizeof(T));
    std::memcpy(to + width, &history.values[sequence][position * width], width * sizeof(T));
  }
  return rows;
}

template <typename T>
static void attention(const std::string& name, const AttentionShape& shape, std::vector<Sequence> sequences) {
  const Paged paged(shape, std::move(sequences));
  Random random(9);
  const History<T> history(paged, random);
  const std::vector<T> rows = projected(paged, history, random);
  const int64_t queries = shape.heads * shape.head_dim, stride = queries + 2 * history.width();
  core_write_cache(&shape, &paged.step, &history.cache, &rows[queries], stride, &rows[queries + history.width()],
                   stride);
  std::vector<T> output(paged.step.rows * queries, core::narrow<T>(NAN));
  core_attend(&shape, &paged.step, &history.cache, rows.data(), stride, output.data());
  double largest = 0;
  std::vector<std::vector<double>> keys, values;
  for (size_t i = 0; i < paged.sequences.size(); i++)
    keys.push_back(history.kept(widened(history.keys[i]))),
        values.push_back(history.kept(widened(history.values[i])));
  const std::vector<double> query = widened(rows);
  for (size_t row = 0; row < paged.rows.size(); row++) {
    const auto [sequence, position] = paged.rows[row];
    const std::vector<double> expected =
        attended(shape, &query[row * stride], position, keys[sequence], values[sequence]);
    const std::vector<T> given(&output[row * queries], &output[row * queries] + queries);
    largest = std::fmax(largest, largest_error(given, expected));
  }
  double padding = 0;
  for (size_t i = paged.rows.size() * queries; i < output.size(); i++)
    padding += !std::isfinite(core::widen(output[i]));
  const std::string type = std::string(sizeof(T) == 2 ? " in bfloat16" : " in float32") +
                           (shape.quantized ? ", kept in int8" : "");
  report("attention" + type + ", " + name, largest, sizeof(T) == 2 ? 1e-2 : 4e-6);
  report("attention" + type + ", " + name + ", padding that is not finite", padding, 0);
}

template <typename T>
static void shapes(int64_t kept) {
  const int32_t dtype = sizeof(T) == 2 ? core::kModelBfloat16 : core::kModelFloat32;
  attention<T>("9 heads on 3, decodes", {dtype, 0.125f, 9, 3, 64, 16, 0, kept},
               {{1, 1}, {1, 16}, {1, 17}, {1, 300}, {1, 600}});
  attention<T>("9 heads on 3, prompts", {dtype, 0.125f, 9, 3, 64, 16, 0, kept}, {{2, 2}, {37, 37}, {20, 75}, {2, 33}});
  attention<T>("mixed", {dtype, 0.09f, 4, 1, 128, 16, 0, kept}, {{1, 5}, {1, 64}, {3, 3}, {30, 47}});
  attention<T>("window of 20", {dtype, 0.125f, 4, 2, 64, 16, 20, kept},
               {{1, 7}, {1, 20}, {1, 21}, {1, 290}, {50, 50}, {9, 90}});
  attention<T>("window across pieces", {dtype, 0.2f, 2, 2, 32, 16, 300, kept}, {{1, 299}, {1, 301}, {1, 600}});
  attention<T>("head size 16", {dtype, 0.25f, 3, 3, 16, 32, 0, kept}, {{1, 40}, {40, 40}});
  attention<T>("head size 80, sharp", {dtype, 3.0f, 6, 2, 80, 16, 0, kept}, {{1, 70}, {18, 70}});
  attention<T>("head size 256", {dtype, 0.06f, 2, 1, 256, 16, 0, kept}, {{1, 33}, {6, 12}});
}

void attentions() {
  for (const int64_t kept_in_int8 : {0, 1}) {
    shapes<float>(kept_in_int8);
    shapes<bfloat16>(kept_in_int8);
  }
}

}  // namespace check
