// Work shared among threads: items are taken one by one from a counter, so that uneven items
// balance.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera {

constexpr int kMaxThreads = 4096;  // more than any machine has: a larger number is a mistake

// Calls body(item, worker) once for every item in [0, items), worker in [0, threads).
// `poll`, if given, is called in the calling thread about ten times a second with the number of
// finished items; what it throws (Ctrl-C) stops the workers after their current item.
inline void parallel_for(int64_t items, int threads,
                         const std::function<void(int64_t item, int worker)>& body,
                         const std::function<void(int64_t done)>& poll = nullptr) {
  if (items <= 0) return;
  if (threads > items) threads = static_cast<int>(items);
  if (threads <= 1 && !poll) {
    for (int64_t i = 0; i < items; ++i) body(i, 0);
    return;
  }
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr error;
  int running = threads;

  auto work = [&](int worker) {
    try {
      for (int64_t i; !stop && (i = next++) < items;) {
        body(i, worker);
        ++done;
      }
    } catch (...) {  // carried to the calling thread below
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      stop = true;
    }
    std::lock_guard<std::mutex> lock(mutex);
    if (--running == 0) finished.notify_all();
  };

  std::vector<std::thread> pool;
  try {
    for (int w = 0; w < threads; ++w) pool.emplace_back(work, w);
    std::unique_lock<std::mutex> lock(mutex);
    while (running > 0) {
      finished.wait_for(lock, std::chrono::milliseconds(100));
      if (!poll || running == 0) continue;
      lock.unlock();
      poll(done);
      lock.lock();
    }
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!error) error = std::current_exception();
    stop = true;
  }
  for (std::thread& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
  if (poll) poll(done);
}

}  // namespace tessera
