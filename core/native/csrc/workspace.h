// Scratch memory that outlives a call: it grows and is never given back.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "team.h"

namespace core {

constexpr int64_t kAlignment = 64;

inline int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Hands out aligned parts of some memory, one after the other. Without memory it only counts.
class Parts {
 public:
  explicit Parts(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    T* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += aligned(count * static_cast<int64_t>(sizeof(T)));
    return part;
  }

  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// One calling thread's memory, shared by its team during a call.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }

  void* at_least(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = aligned(bytes + bytes / 4);
      memory_ = std::aligned_alloc(kAlignment, static_cast<size_t>(size_));
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

inline Workspace& workspace() {
  static thread_local Workspace own;
  return own;
}

// No call has more threads than this.
inline int threads_at_most() { return omp_get_max_threads(); }

}  // namespace core
