// Products of packed weights with rows of activations: how the work is cut, and what is done with the sums.
//
// Few rows: every panel is read once, from memory, by whoever is free; pieces shrink towards the end, so that all
// threads finish together. Many rows: a block of them stays in a core's second cache while a group of panels, which
// stays in the third, passes by.

#include "exponential.h"
#include "linear_kernels.h"

namespace core {
namespace {

constexpr int64_t kRowsBytes = 320 << 10;   // of activations that stay in a core's second cache
constexpr int64_t kGroupBytes = 4 << 20;    // of panels that stay in the third
constexpr int64_t kTasksPerThread = 16;

typedef void (*Kernel)(const Linear& linear, const Tile& tile, float* results);

template <typename Dot, int kRows>
void run_tile(const Linear& linear, const Tile& tile, float* results) {
  multiply_tile<Dot, kRows>(tile, steps_of(linear), results);
}

template <int kRows>
void run_chunks(const Linear& linear, const Tile& tile, float* results) {
  multiply_chunks<kRows>(tile, steps_of(linear), results);
}

template <int32_t kFormat, bool kMinimums, int kRows>
void run_groups(const Linear& linear, const Tile& tile, float* results) {
  multiply_groups<kFormat, kMinimums, kRows>(tile, linear.inputs / kBlock, linear.group / kBlock, results);
}

// A kernel for each number of rows up to that of a tile.
template <int... kIndex>
Kernel grouped_kernel(const Linear& linear, int64_t rows, std::integer_sequence<int, kIndex...>) {
  static constexpr Kernel kBytes[] = {run_groups<kInt8, false, kIndex + 1>...};
  static constexpr Kernel kNibbles[] = {run_groups<kInt4, false, kIndex + 1>...};
  static constexpr Kernel kMinimums[] = {run_groups<kInt4, true, kIndex + 1>...};
  return (linear.format == kInt8 ? kBytes : linear.minimums ? kMinimums : kNibbles)[rows - 1];
}

template <int... kIndex>
Kernel plain_kernel(const Linear& linear, int64_t rows, std::integer_sequence<int, kIndex...>) {
  static constexpr Kernel kFloats[] = {run_tile<Float32, kIndex + 1>...};
  static constexpr Kernel kPairs[] = {run_tile<Bfloat16, kIndex + 1>...};
  static constexpr Kernel kBytes[] = {run_chunks<kIndex + 1>...};
  return (linear.format == kFloat32 ? kFloats : linear.format == kBfloat16 ? kPairs : kBytes)[rows - 1];
}

// The most rows of a tile. The totals of int8's chunks take registers beside the sums; rows that are one tile save
// more by reading the weights once.
int64_t tile_rows(const Linear& linear, int64_t rows) {
  if (linear.group) return isa::kGroupedRows;
  return linear.format == kInt8 && rows > isa::kRows ? std::min(isa::kRows, 8) : isa::kRows;
}

Kernel kernel_for(const Linear& linear, int64_t rows) {
  return linear.group ? grouped_kernel(linear, rows, std::make_integer_sequence<int, isa::kGroupedRows>())
                      : plain_kernel(linear, rows, std::make_integer_sequence<int, isa::kRows>());
}

inline void write(float* to, const Vector& v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  if (count > 0) std::memcpy(to, &v, count * sizeof(float));
}

inline void write(bfloat16* to, const Vector& v, int64_t count) {
  const Halves h = isa::to_bfloat16(v);
  if (count >= kLanes) {
    std::memcpy(to, &h, sizeof(h));
  } else if (count > 0) {
    std::memcpy(to, &h, count * sizeof(bfloat16));
  }
}

// The sums of a tile to y [rows, width], of which `y` is the first row.
template <typename T>
void finish(const Linear& linear, int64_t panel, const float* results, int64_t rows, T* y) {
  const int64_t width = linear.gated ? linear.outputs / 2 : linear.outputs;
  const int64_t column = linear.gated ? panel * kPanel / 2 : panel * kPanel, left = width - column;
  for (int64_t row = 0; row < rows; ++row, results += kPanel, y += width) {
    Vector first = load(results), second = load(results + kLanes);
    if (linear.scales) {
      first *= load(linear.scales + panel * kPanel);
      second *= load(linear.scales + panel * kPanel + kLanes);
    }
    if (linear.bias) {
      first += load(linear.bias + panel * kPanel);
      second += load(linear.bias + panel * kPanel + kLanes);
    }
    if (linear.gated) {
      write(y + column, silu<T>(first) * second, left);
    } else {
      write(y + column, first, left);
      write(y + column + kLanes, second, left - kLanes);
    }
  }
}

// Rows and panels that are computed together. The rows are cut into tiles of nearly the same size.
struct Work {
  int64_t first_row, rows, first_panel, panels;
};

template <typename T>
void compute(const Linear& linear, const uint8_t* input, int64_t stride, const Work& work, T* y) {
  alignas(64) float results[isa::kRows * kPanel];
  const int64_t bytes = panel_bytes(linear), width = linear.gated ? linear.outputs / 2 : linear.outputs;
  const int64_t tiles = divide_up(work.rows, tile_rows(linear, work.rows));
  const int64_t small = work.rows / tiles, large = work.rows % tiles;  // so many tiles have one row more
  const Kernel kernels[] = {kernel_for(linear, small), kernel_for(linear, small + (large > 0))};
  for (int64_t panel = work.first_panel; panel < work.first_panel + work.panels; ++panel) {
    const uint8_t* weights = static_cast<const uint8_t*>(linear.panels) + panel * bytes;
    int64_t row = work.first_row;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t rows = small + (tile < large);
      const uint8_t* ahead = tile + 1 < tiles ? weights : weights + bytes;
      kernels[tile < large](linear, {weights, input + row * stride, stride, ahead}, results);
      finish(linear, panel, results, rows, y + row * width);
      row += rows;
    }
  }
}

// Pieces of panels that shrink towards the end: a share of what is left, for each thread the same.
class Pieces {
 public:
  Pieces(int64_t panels, int size) : panels_(panels), size_(size) {}

  int64_t count() const {
    Pieces other(panels_, size_);
    while (other.first < panels_) other.advance();
    return other.index;
  }
  void advance_to(int64_t i) {
    while (index < i) advance();
  }
  int64_t length() const { return std::max<int64_t>(1, (panels_ - first) / (2 * size_)); }

  int64_t index = 0, first = 0;

 private:
  void advance() { first += length(), ++index; }

  int64_t panels_;
  int size_;
};

template <typename T>
void few_rows(Team& team, const Linear& linear, const uint8_t* input, int64_t stride, int64_t rows, T* y) {
  Pieces pieces(panels_of(linear), team.size);
  team.each(pieces.count(), [&](int64_t i) {
    pieces.advance_to(i);
    compute(linear, input, stride, {0, rows, pieces.first, pieces.length()}, y);
  });
}

template <typename T>
void many_rows(Team& team, const Linear& linear, const uint8_t* input, int64_t stride, int64_t rows, int64_t blocks,
               T* y) {
  const int64_t panels = panels_of(linear), tile = tile_rows(linear, rows);
  const int64_t height = divide_up(divide_up(rows, blocks), tile) * tile;
  const int64_t fine = blocks * panels / (kTasksPerThread * team.size);
  const int64_t length = std::max<int64_t>(1, std::min(fine, kGroupBytes / panel_bytes(linear)));
  blocks = divide_up(rows, height);
  team.each(blocks * divide_up(panels, length), [&](int64_t i) {
    const int64_t row = i % blocks * height, panel = i / blocks * length;
    compute(linear, input, stride,
            {row, std::min(height, rows - row), panel, std::min(length, panels - panel)}, y);
  });
}

}  // namespace

template <typename T>
void multiply(Team& team, const Linear& linear, const void* input, int64_t rows, T* y) {
  const bool given = prepared_bytes(linear, rows) == 0;
  const int64_t stride = given ? linear.inputs * int64_t{sizeof(T)} : row_bytes(linear);
  const int64_t blocks = divide_up(rows, std::max<int64_t>(2 * tile_rows(linear, rows), kRowsBytes / stride));
  const uint8_t* from = static_cast<const uint8_t*>(input);
  if (blocks > 1) return many_rows(team, linear, from, stride, rows, blocks, y);
  if (rows > 0) few_rows(team, linear, from, stride, rows, y);
}

template void multiply<float>(Team&, const Linear&, const void*, int64_t, float*);
template void multiply<bfloat16>(Team&, const Linear&, const void*, int64_t, bfloat16*);

namespace {

template <typename T>
void apply(Team& team, const Linear& linear, const T* x, int64_t rows, T* y, void* scratch) {
  const void* input = prepare(team, linear, x, rows, scratch);
  if (input == scratch) team.wait();
  multiply(team, linear, input, rows, y);
}

template <typename T>
void gated_mlp(const Linear& gate_up, const Linear& down, const T* x, int64_t rows, T* y, uint8_t* scratch) {
  T* hidden = reinterpret_cast<T*>(scratch);
  uint8_t* prepared = scratch + divide_up(rows * down.inputs * int64_t{sizeof(T)}, 64) * 64;
  together([&](Team& team) {
    apply(team, gate_up, x, rows, hidden, prepared);
    team.wait();
    apply(team, down, hidden, rows, y, prepared);
  });
}

}  // namespace

// The plain C interface, as core/native/linear.py declares it. x [rows, inputs], y [rows, outputs]; `scratch` has as
// many bytes as the function of the same name says.
extern "C" {

int64_t linear_scratch(const Linear* linear, int64_t rows) { return prepared_bytes(*linear, rows); }

void linear_float32(const Linear* linear, const float* x, int64_t rows, float* y, void* scratch) {
  together([&](Team& team) { apply(team, *linear, x, rows, y, scratch); });
}

void linear_bfloat16(const Linear* linear, const bfloat16* x, int64_t rows, bfloat16* y, void* scratch) {
  together([&](Team& team) { apply(team, *linear, x, rows, y, scratch); });
}

int64_t gated_mlp_scratch(const Linear* gate_up, const Linear* down, int64_t rows) {
  const int64_t hidden = divide_up(rows * down->inputs * int64_t{sizeof(float)}, 64) * 64;
  return hidden + std::max(prepared_bytes(*gate_up, rows), prepared_bytes(*down, rows));
}

void gated_mlp_float32(const Linear* gate_up, const Linear* down, const float* x, int64_t rows, float* y,
                       uint8_t* scratch) {
  gated_mlp(*gate_up, *down, x, rows, y, scratch);
}

void gated_mlp_bfloat16(const Linear* gate_up, const Linear* down, const bfloat16* x, int64_t rows, bfloat16* y,
                        uint8_t* scratch) {
  gated_mlp(*gate_up, *down, x, rows, y, scratch);
}
}

}  // namespace core
