// Memory that is about to be written for the first time.

#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "pages.h"
#include "step.h"

namespace core {

constexpr int64_t kBlocksAhead = 64;  // at most, that are brought in before anything is written to them

// Brings in the pages that hold [from, to), together. One by one, by threads that wait for each other, they cost
// several times as much. Where the system cannot, they come when they are written.
inline void populate(char* from, char* to) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, of Linux 5.14 and later
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(from) / page * page;
  madvise(reinterpret_cast<void*>(first), reinterpret_cast<uintptr_t>(to) - first, kPopulateWrite);
#endif
}

// Blocks of one layer's cache whose pages a step brings in: those it is the first to reach, and as many again, which
// come next, for blocks are handed out in order.
struct Fresh {
  int64_t first, end;

  Fresh(const Step& step, const Cache& cache) : first(cache.populated), end(cache.populated) {
    const int64_t needed = step.highest_block + 1;
    if (needed > first) end = std::min(cache.num_blocks, needed + std::min(needed, kBlocksAhead));
  }

  bool any() const { return first < end; }

  // Keys and values of one head.
  template <typename T>
  void populate_head(const AttentionShape& shape, const Cache& cache, int64_t head) const {
    const int64_t bytes = block_bytes<T>(shape), at = (head * cache.num_blocks + first) * bytes;
    for (void* storage : {cache.keys, cache.values}) {
      char* from = static_cast<char*>(storage) + at;
      populate(from, from + (end - first) * bytes);
    }
  }
};

}  // namespace core
