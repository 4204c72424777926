// The scheduler of fibers; see emulator.h.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda_emulator/fibers.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Where the linker puts all static __shared__ variables; absent where there is none.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_tessera_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __stop_tessera_shared[];

namespace tessera::emulator {
namespace {

constexpr size_t kGuardBytes = 4096;  // on both sides of dynamic shared memory
constexpr unsigned char kGuard = 0xA5, kPoison = 0xFF;

enum class State : uint8_t { kReady, kInWarp, kAtBarrier, kExited };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, valid_bytes;
};

struct Fiber {
  Context context;
  State state;
  unsigned lane;
  dim3 index;
  std::vector<std::vector<Copy>> copies;  // committed groups, oldest first; the last is open
};

// What lanes wait for; kept under the lowest lane of its mask, so that disjoint masks can wait at
// the same time.
struct Pending {
  uint32_t mask = 0, arrived = 0;
  unsigned barriers = 0;  // __syncwarps so far
  char order[2];          // what they release and acquire, in turns
  const char* operation = nullptr;
  void* payloads[32];
};

struct Warp {
  Pending pending[32];
};

class Machine {
 public:
  void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
           const std::function<void()>& body) {
    const unsigned threads = block.x * block.y * block.z;
    if (running_) throw Error("a kernel launches a kernel");
    if (threads == 0 || threads > kMaxThreads)
      throw Error("a block of " + std::to_string(threads) + " threads");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) throw Error("an empty grid");
    body_ = &body;
    kernel_ = kernel;
    running_ = true;
    scheduler_.adopt();
    struct Stop {
      bool& running;
      ~Stop() { running = false; }
    } stop{running_};
    blockDim = block;
    gridDim = grid;
    if (fibers_.size() < threads) fibers_.resize(threads);
    warps_.resize((threads + 31) / 32);
    threads_ = threads;
    shared_bytes_ = shared_bytes;
    allow(shared_.data(), shared_.size());
    shared_.resize(shared_bytes + 2 * kGuardBytes + 16);
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          run_block();
        }
  }

  unsigned char* shared() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(shared_.data() + kGuardBytes);
    return reinterpret_cast<unsigned char*>((at + 15) & ~uintptr_t(15));
  }

  void** arrive(uint32_t mask, const char* operation, void* payload) {
    Fiber& fiber = fibers_[current_];
    if (!(mask >> fiber.lane & 1u)) throw Error(where(operation) + "the mask lacks this lane");
    Pending& pending = warps_[current_ / 32].pending[__builtin_ctz(mask)];
    if (pending.arrived == 0) {
      pending.mask = mask;
      pending.operation = operation;
      std::fill(pending.payloads, pending.payloads + 32, nullptr);
    } else if (pending.mask != mask || pending.operation != operation) {
      throw Error(where(operation) + "other lanes of the warp are in " + pending.operation +
                  " or name another mask");
    }
    pending.arrived |= 1u << fiber.lane;
    pending.payloads[fiber.lane] = payload;
    if (pending.arrived == mask) return pending.payloads;
    wait(State::kInWarp);
    return nullptr;
  }

  void release(uint32_t mask) {
    warps_[current_ / 32].pending[__builtin_ctz(mask)].arrived = 0;
    const unsigned first = current_ / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1u) fibers_[first + lane].state = State::kReady;
  }

  // Two places in turns: a thread may be at the next barrier before others have left this one.
  int barrier(bool flag) {
    void* const order = &block_order_[barriers_ % 2];
    order_release(order);
    flags_ += flag;
    if (++at_barrier_ < threads_) {
      wait(State::kAtBarrier);
    } else {
      at_barrier_ = 0;
      ++barriers_;
      barrier_result_ = flags_;
      flags_ = 0;
      for (unsigned i = 0; i < threads_; ++i) fibers_[i].state = State::kReady;
      check_guards();
    }
    order_acquire(order);
    return barrier_result_;
  }

  void warp_barrier(uint32_t mask) {
    Pending& pending = warps_[current_ / 32].pending[__builtin_ctz(mask)];
    void* const order = &pending.order[pending.barriers % 2];
    order_release(order);
    if (arrive(mask, "__syncwarp", order)) {
      ++pending.barriers;
      release(mask);
    }
    order_acquire(order);
  }

  void check_aligned(const void* at, size_t bytes, const char* operation) {
    if (reinterpret_cast<uintptr_t>(at) % bytes == 0) return;
    char address[2 + 2 * sizeof at + 1];
    std::snprintf(address, sizeof address, "%p", at);
    const ptrdiff_t offset = static_cast<const unsigned char*>(at) - shared();
    const bool inside = offset >= 0 && size_t(offset) < shared_bytes_;
    throw Error(where(operation) + "expected an address that is a multiple of " +
                std::to_string(bytes) + ", got " + address +
                (inside ? ", byte " + std::to_string(offset) + " of shared memory" : ""));
  }

  Fiber& fiber() { return fibers_[current_]; }
  void set_order(Order order, uint64_t seed) {
    order_ = order;
    random_ = seed * 2 + 1;
  }

 private:
  static void entry();

  void wait(State state) {
    Fiber& fiber = fibers_[current_];
    fiber.state = state;
    fiber.context.switch_to(scheduler_);
  }

  void run_block() {
    unsigned char* const shared_memory = shared();
    allow(shared_.data(), shared_.size());
    std::fill(shared_.begin(), shared_.end(), kGuard);
    std::fill(shared_memory, shared_memory + shared_bytes_, kPoison);
    forbid(shared_memory - kGuardBytes, kGuardBytes);
    forbid(shared_memory + shared_bytes_, kGuardBytes);
    // volatile: a plain loop is a call of memset, which the address sanitizer would watch
    for (volatile unsigned char* at = __start_tessera_shared; at != __stop_tessera_shared; ++at)
      *at = kPoison;
    at_barrier_ = exited_ = 0;
    flags_ = 0;
    for (Warp& warp : warps_)
      for (Pending& pending : warp.pending) pending.arrived = 0;
    for (unsigned i = 0; i < threads_; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.state = State::kReady;
      fiber.lane = i % 32;
      fiber.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
      fiber.copies.assign(1, {});
      fiber.context.start(stacks_.top(i), &Machine::entry);
    }
    order_release(&begin_order_);
    const unsigned warps = unsigned(warps_.size());
    while (exited_ < threads_) {
      bool any = false;
      const unsigned skip = order_ == Order::kRandom ? next_random() % warps : 0;
      for (unsigned i = 0; i < warps; ++i) {
        const unsigned warp = order_ == Order::kReverse ? warps - 1 - i : (i + skip) % warps;
        bool progress = run_lanes(warp);
        any |= progress;
        // In random order another warp may go on in the middle of this one's work.
        while (progress && (order_ != Order::kRandom || next_random() % 4))
          progress = run_lanes(warp);
      }
      if (!any && exited_ < threads_) throw Error(stuck());
    }
    order_acquire(&end_order_);
    check_guards();
  }

  // Every lane that can run, to where it waits. False if none can.
  bool run_lanes(unsigned warp) {
    bool any = false;
    const unsigned first = warp * 32, count = std::min(32u, threads_ - first);
    const unsigned skip = order_ == Order::kRandom ? next_random() % count : 0;
    for (unsigned i = 0; i < count; ++i) {
      current_ = first + (order_ == Order::kReverse ? count - 1 - i : (i + skip) % count);
      Fiber& fiber = fibers_[current_];
      if (fiber.state != State::kReady) continue;
      any = true;
      threadIdx = fiber.index;
      scheduler_.switch_to(fiber.context);
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }
    return any;
  }

  void check_guards() {
    unsigned char* const memory = shared();
    const unsigned char* end = memory + shared_bytes_;
    for (size_t i = 1; i <= kGuardBytes; ++i)
      if (memory[-ptrdiff_t(i)] != kGuard)
        throw Error(where() + "wrote " + std::to_string(i) + " bytes before shared memory");
    for (size_t i = 0; i < kGuardBytes; ++i)
      if (end[i] != kGuard)
        throw Error(where() + "wrote " + std::to_string(i) + " bytes after the end of the " +
                    std::to_string(shared_bytes_) + " bytes of shared memory");
  }

  std::string where() {
    return std::string(kernel_) + ", block (" + std::to_string(blockIdx.x) + ", " +
           std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): ";
  }
  std::string where(const char* operation) {
    return where() + "thread " + std::to_string(current_) + ", " + operation + ": ";
  }

  std::string stuck() {
    std::string text = where() + std::to_string(at_barrier_) + " of " + std::to_string(threads_) +
                       " threads wait at __syncthreads, " + std::to_string(exited_) +
                       " have exited";
    for (size_t w = 0; w < warps_.size(); ++w)
      for (const Pending& pending : warps_[w].pending)
        if (pending.arrived)
          text += "; warp " + std::to_string(w) + ": " +
                  std::to_string(__builtin_popcount(pending.arrived)) + " of " +
                  std::to_string(__builtin_popcount(pending.mask)) + " lanes are in " +
                  pending.operation;
    return text;
  }

  uint32_t next_random() {  // xorshift64* of Vigna 2016
    random_ ^= random_ >> 12;
    random_ ^= random_ << 25;
    random_ ^= random_ >> 27;
    return uint32_t((random_ * 0x2545F4914F6CDD1Dull) >> 32);
  }

  Stacks stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<unsigned char> shared_;
  Context scheduler_;
  std::exception_ptr error_;
  const std::function<void()>* body_ = nullptr;
  const char* kernel_ = "";
  Order order_ = Order::kForward;
  uint64_t random_ = 1;
  size_t shared_bytes_ = 0;
  unsigned threads_ = 0, current_ = 0, at_barrier_ = 0, exited_ = 0;
  unsigned barriers_ = 0;
  int flags_ = 0, barrier_result_ = 0;
  char block_order_[2], begin_order_, end_order_;  // what barriers, blocks release, acquire
  bool running_ = false;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

void Machine::entry() {
  Machine& m = machine();
  m.fibers_[m.current_].context.begin(m.scheduler_);
  order_acquire(&m.begin_order_);
  try {
    (*m.body_)();
  } catch (...) {  // carried to run_lanes
    m.error_ = std::current_exception();
  }
  order_release(&m.end_order_);
  ++m.exited_;
  m.wait(State::kExited);
  std::terminate();  // an exited fiber is never resumed
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  machine().set_order(order, seed);
}

void run_blocks(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                const std::function<void()>& body) {
  static std::recursive_mutex one_at_a_time;  // recursive: run tells of a launch within a launch
  std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
  machine().run(kernel, grid, block, shared_bytes, body);
}

unsigned char* dynamic_shared() {
  return machine().shared();
}
unsigned lane() {
  return machine().fiber().lane;
}
void** arrive(uint32_t mask, const char* operation, void* payload) {
  return machine().arrive(mask, operation, payload);
}
void release(uint32_t mask) {
  machine().release(mask);
}
int barrier(bool flag) {
  return machine().barrier(flag);
}
void warp_barrier(uint32_t mask) {
  machine().warp_barrier(mask);
}
void check_aligned(const void* at, size_t bytes, const char* operation) {
  machine().check_aligned(at, bytes, operation);
}

#if defined(TESSERA_WATCH_ORDER)
Unwatched::Unwatched() {
  __tsan_ignore_thread_begin();
}
Unwatched::~Unwatched() {
  __tsan_ignore_thread_end();
}
#else
Unwatched::Unwatched() = default;
Unwatched::~Unwatched() = default;
#endif

void copy_later(void* to, const void* from, size_t bytes, size_t valid_bytes) {
  machine().check_aligned(to, bytes, "cp.async to");
  machine().check_aligned(from, bytes, "cp.async from");
  report_copy(to, from, bytes, valid_bytes);
  machine().fiber().copies.back().push_back({to, from, bytes, valid_bytes});
}

void commit_copies() {
  machine().fiber().copies.emplace_back();
}

void wait_copies(size_t groups_left) {
  auto& copies = machine().fiber().copies;
  while (copies.size() > groups_left + 1) {
    for (const Copy& copy : copies.front()) {
      report_copy(copy.to, copy.from, copy.bytes, copy.valid_bytes);
      std::memcpy(copy.to, copy.from, copy.valid_bytes);
      std::memset(static_cast<char*>(copy.to) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    }
    copies.erase(copies.begin());
  }
}

}  // namespace tessera::emulator
