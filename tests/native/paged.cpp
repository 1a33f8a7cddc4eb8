// See paged.h.

#include "paged.h"

namespace check {

Paged::Paged(const core::AttentionShape& shape, std::vector<Sequence> given)
    : shape(shape), sequences(std::move(given)), starts_(1, 0) {
  int64_t width = 0, pieces = 0;
  for (const Sequence& sequence : sequences) {
    step.num_decodes += sequence.new_tokens == 1;
    width = std::max(width, (sequence.length + shape.block_size - 1) / shape.block_size);
    pieces += sequence.new_tokens + sequence.length / 256 + 1;
  }
  for (size_t i = 0; i < sequences.size(); i++) {
    const int64_t used = (sequences[i].length + shape.block_size - 1) / shape.block_size;
    for (int64_t block = 0; block < width; block++) tables_.push_back(block < used ? num_blocks++ : 0);
    for (int64_t at = sequences[i].length - sequences[i].new_tokens; at < sequences[i].length; at++)
      rows.push_back({i, at});
    starts_.push_back(static_cast<int32_t>(rows.size())), lengths_.push_back(sequences[i].length);
  }
  for (int32_t& block : tables_) block = block ? num_blocks - block : 0;  // in no order that helps
  step.num_sequences = sequences.size(), step.table_width = width, step.rows = rows.size() + kPadding;
  for (const Row& row : rows) slots_.push_back(slot(row.sequence, row.position));
  slots_.resize(step.rows);
  tasks_.resize(pieces);
  step.query_start = starts_.data(), step.block_tables = tables_.data(), step.lengths = lengths_.data();
  step.slots = slots_.data(), step.tasks = tasks_.data();
  core_plan_attention(&shape, &step);
}

static double dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
  return sum;
}

void keep_in_int8(double* row, int64_t dim) {
  float largest = 0;
  for (int64_t d = 0; d < dim; d++) largest = std::fmax(largest, std::fabs(static_cast<float>(row[d])));
  const float scale = largest / 127.0f;
  for (int64_t d = 0; d < dim && scale > 0; d++)
    row[d] = static_cast<double>(std::nearbyint(static_cast<float>(row[d]) / scale)) * scale;
}

std::vector<double> attended(const core::AttentionShape& shape, const double* query, int64_t position,
                             const std::vector<double>& keys, const std::vector<double>& values) {
  const int64_t dim = shape.head_dim, width = shape.kv_heads * dim;
  const int64_t first = shape.window ? std::max<int64_t>(0, position - shape.window + 1) : 0;
  std::vector<double> result(shape.heads * dim);
  for (int64_t head = 0; head < shape.heads; head++) {
    const int64_t offset = head / (shape.heads / shape.kv_heads) * dim;
    double total = 0;
    for (int64_t at = first; at <= position; at++) {
      const double weight = std::exp(shape.scale * dot(query + head * dim, &keys[at * width + offset], dim));
      for (int64_t d = 0; d < dim; d++) result[head * dim + d] += weight * values[at * width + offset + d];
      total += weight;
    }
    for (int64_t d = 0; d < dim; d++) result[head * dim + d] /= total;
  }
  return result;
}

}  // namespace check
