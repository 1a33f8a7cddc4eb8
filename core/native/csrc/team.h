// The threads that work on one call together: tasks handed out as they are asked for, and barriers.

#pragma once

#include <atomic>
#include <cstdint>

// The pool of threads is that of the OpenMP library that torch has loaded. Its functions are called by their names,
// which the libraries of GNU and LLVM share: a compiler would turn pragmas into calls of its own library.
extern "C" {
int omp_get_max_threads();
int omp_get_num_threads();
int omp_get_thread_num();
void GOMP_parallel(void (*work)(void*), void* argument, unsigned threads, unsigned flags);
void GOMP_barrier();
}

namespace core {

constexpr int kPhases = 32;  // rounds of tasks in one call, at most

// What the team of one call shares. Made before its threads start.
struct Phases {
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };
  Counter counters[kPhases];
};

// One thread's membership.
class Team {
 public:
  Team(Phases& phases, int rank, int size) : rank(rank), size(size), phases_(phases) {}

  const int rank, size;

  // Calls do_task(i) once for each i below `tasks`, on whichever thread is free. Every member must call it, with
  // the same count; returns when no task is left to take, which is not when all are done: see `wait`.
  template <typename F>
  void each(int64_t tasks, F do_task) {
    std::atomic<int64_t>& next = phases_.counters[phase_++].next;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) do_task(i);
  }

  // Returns once every member is here: what they have written can be read.
  void wait() { GOMP_barrier(); }

 private:
  Phases& phases_;
  int phase_ = 0;
};

// Runs work(team) on every thread of the pool, and returns when all have.
template <typename F>
void together(F work) {
  struct Call {
    F& work;
    Phases phases;
  };
  Call call{work, {}};
  const auto run = [](void* argument) {
    Call& shared = *static_cast<Call*>(argument);
    Team team(shared.phases, omp_get_thread_num(), omp_get_num_threads());
    shared.work(team);
  };
  GOMP_parallel(run, &call, 0, 0);
}

}  // namespace core
