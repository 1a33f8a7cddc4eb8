// Packing: from a tensor's rows, or from the stored bytes of a quantised weight, to panels.

#include "linear_panel.h"

namespace core {
namespace {

// The values of one output to every step of its panel, the last filled up with zeros; `flip` is what turns signed
// bytes into offset ones.
void pack_row(const uint8_t* row, int64_t bytes, uint32_t flip, uint8_t* to) {
  uint32_t word = 0;
  for (; bytes >= 4; bytes -= 4, row += 4, to += kStepBytes) {
    std::memcpy(&word, row, sizeof(word));
    word ^= flip;
    std::memcpy(to, &word, sizeof(word));
  }
  if (bytes == 0) return;
  word = 0;
  std::memcpy(&word, row, bytes);
  word ^= flip;
  std::memcpy(to, &word, sizeof(word));
}

// A stored group has element j in the low half of byte j, and element j + group / 2 in its high half. A step's byte j
// has element j of its eight in the low half, and element j + 4 in the high one.
void pack_nibbles(const uint8_t* values, int64_t group, uint8_t* to) {
  const auto element = [&](int64_t i) {
    return i < group / 2 ? values[i] & 15 : values[i - group / 2] >> 4;
  };
  for (int64_t first = 0; first < group; first += 8, to += kStepBytes)
    for (int64_t j = 0; j < 4; ++j) to[j] = element(first + j) | element(first + j + 4) << 4;
}

constexpr uint32_t kFlip = isa::kOffset ? 0x80808080u : 0;

// A lane of a panel from a row of groups: float16 scale, float16 minimum if there are any, values.
void pack_groups(const Linear& linear, const uint8_t* row, int64_t lane, uint8_t* panel) {
  const int64_t bytes = linear.format == kInt8 ? linear.group : linear.group / 2;
  const int64_t header = linear.minimums ? 4 : 2;
  const int64_t group_bytes = header_bytes(linear) + linear.group / inputs_per_step(linear.format) * kStepBytes;
  for (int64_t i = 0; i < linear.inputs; i += linear.group, row += header + bytes, panel += group_bytes) {
    for (int64_t at = 0; at < header; at += 2) std::memcpy(panel + at * kPanel + 2 * lane, row + at, 2);
    uint8_t* to = panel + header_bytes(linear) + 4 * lane;
    if (linear.format == kInt8) {
      pack_row(row + header, bytes, kFlip, to);
    } else {
      pack_nibbles(row + header, linear.group, to);
    }
  }
}

void pack_lane(const Linear& linear, const uint8_t* row, int64_t lane, int64_t panel) {
  uint8_t* to = static_cast<uint8_t*>(linear.panels) + panel * panel_bytes(linear);
  if (linear.group) return pack_groups(linear, row, lane, to);
  if (linear.format == kInt8) {
    std::memcpy(linear.scales + panel * kPanel + lane, row, sizeof(float));
    return pack_row(row + sizeof(float), linear.inputs, kFlip, to + 4 * lane);
  }
  pack_row(row, linear.inputs * (linear.format == kFloat32 ? 4 : 2), 0, to + 4 * lane);
}

}  // namespace

// The plain C interface, as core/native/linear.py declares it.
extern "C" {

int64_t linear_panel_count(const Linear* linear) { return panels_of(*linear); }

int64_t linear_panel_bytes(const Linear* linear) { return panel_bytes(*linear); }

// Fills `panels` and `scales` from `source`: rows of `stride` bytes, floats or stored groups as the format has it.
void linear_pack(const Linear* linear, const uint8_t* source, int64_t stride) {
  together([&](Team& team) {
    team.each(panels_of(*linear), [&](int64_t panel) {
      std::memset(static_cast<uint8_t*>(linear->panels) + panel * panel_bytes(*linear), 0, panel_bytes(*linear));
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        const int64_t row = row_of(*linear, panel, lane);
        if (row >= 0) pack_lane(*linear, source + row * stride, lane, panel);
      }
    });
  });
}

// Spreads `values` [outputs] over the lanes that the outputs have: to [padded outputs], zeros where there is none.
void linear_spread(const Linear* linear, const float* values, float* to) {
  for (int64_t i = 0; i < panels_of(*linear) * kPanel; ++i) {
    const int64_t row = row_of(*linear, i / kPanel, i % kPanel);
    to[i] = row >= 0 ? values[row] : 0.0f;
  }
}
}

}  // namespace core
