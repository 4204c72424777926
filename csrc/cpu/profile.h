// Where an encoder's time goes: nanoseconds per op, summed over threads.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace tessera::cpu {

enum class Op { kEmbed, kQkv, kAttention, kOut, kNorm, kFf1, kFf2, kConvert, kGru, kPool, kReduce };
constexpr int kOps = static_cast<int>(Op::kReduce) + 1;
constexpr std::array<const char*, kOps> kOpNames = {"embed", "qkv",     "attention", "out",
                                                    "norm",  "ff1",     "ff2",       "convert",
                                                    "gru",   "pooling", "reducer"};

// One thread's stopwatch: lap(op) gives the time since the last lap to op.
class Profile {
 public:
  explicit Profile(bool on) : on_(on) {}
  void start() {
    if (on_) last_ = std::chrono::steady_clock::now();
  }
  void lap(Op op) {
    if (!on_) return;
    const auto now = std::chrono::steady_clock::now();
    nanoseconds[static_cast<int>(op)] += std::chrono::nanoseconds(now - last_).count();
    last_ = now;
  }

  std::array<int64_t, kOps> nanoseconds{};

 private:
  bool on_;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace tessera::cpu
