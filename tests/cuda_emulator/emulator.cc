// Fibers and their scheduler; see emulator.h. Stacks are pages of their own with a guard page under
// each, so that an overflow stops the process instead of corrupting a neighbour.
#include "cuda_emulator/emulator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

#if defined(__x86_64__)
// switch(void** save, void* load): what the ABI lets a callee change needs no saving.
extern "C" void tessera_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl tessera_emulator_switch
.hidden tessera_emulator_switch
.type tessera_emulator_switch, @function
tessera_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tessera_emulator_switch, .-tessera_emulator_switch
)");
#endif

namespace tessera::emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // of address space: pages are taken when touched
constexpr size_t kGuardBytes = 4096;       // on both sides of dynamic shared memory
constexpr unsigned char kGuard = 0xA5, kPoison = 0xFF;
constexpr unsigned kMaxThreads = 1024;

enum class State : uint8_t { kReady, kInWarp, kAtBarrier, kExited };

class Context {
 public:
#if defined(__x86_64__)
  void start(unsigned char* top, void (*entry)()) {
    void** words = reinterpret_cast<void**>(top);
    words[-1] = nullptr;  // the entry never returns; after `ret` the stack is as after a call
    words[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) words[-i] = nullptr;
    stack_ = words - 8;
  }
  void switch_to(Context& other) { tessera_emulator_switch(&stack_, other.stack_); }

 private:
  void* stack_ = nullptr;
#else
  void start(unsigned char* top, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = top - kStackBytes;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_{};
#endif
};

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
  const char* operation = nullptr;
  void* payloads[32];
};

struct Warp {
  Pending pending[32];
};

class Stacks {
 public:
  Stacks() {
    page_ = size_t(sysconf(_SC_PAGESIZE));
    stride_ = kStackBytes + page_;
    void* at = mmap(nullptr, stride_ * kMaxThreads, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw Error("no address space for the emulator's stacks");
    base_ = static_cast<unsigned char*>(at);
    for (unsigned i = 0; i < kMaxThreads; ++i) mprotect(base_ + i * stride_, page_, PROT_NONE);
  }
  unsigned char* top(unsigned i) { return base_ + (i + 1) * stride_; }

 private:
  unsigned char* base_;
  size_t page_, stride_;
};

class Machine {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
    const unsigned threads = block.x * block.y * block.z;
    if (running_) throw Error("a kernel launches a kernel");
    if (threads == 0 || threads > kMaxThreads)
      throw Error("a block of " + std::to_string(threads) + " threads");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) throw Error("an empty grid");
    body_ = &body;
    running_ = true;
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

  int barrier(bool flag) {
    flags_ += flag;
    if (++at_barrier_ < threads_) {
      wait(State::kAtBarrier);
    } else {
      at_barrier_ = 0;
      barrier_result_ = flags_;
      flags_ = 0;
      for (unsigned i = 0; i < threads_; ++i) fibers_[i].state = State::kReady;
      check_guards();
    }
    return barrier_result_;
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
    std::fill(shared_.begin(), shared_.end(), kGuard);
    std::fill(shared_memory, shared_memory + shared_bytes_, kPoison);
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
    return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
           std::to_string(blockIdx.z) + "): ";
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
  Order order_ = Order::kForward;
  uint64_t random_ = 1;
  size_t shared_bytes_ = 0;
  unsigned threads_ = 0, current_ = 0, at_barrier_ = 0, exited_ = 0;
  int flags_ = 0, barrier_result_ = 0;
  bool running_ = false;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

void Machine::entry() {
  Machine& m = machine();
  try {
    (*m.body_)();
  } catch (...) {  // carried to run_lanes
    m.error_ = std::current_exception();
  }
  ++m.exited_;
  m.wait(State::kExited);
  std::terminate();  // an exited fiber is never resumed
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  machine().set_order(order, seed);
}

void run_blocks(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  static std::recursive_mutex one_at_a_time;  // recursive: run tells of a launch within a launch
  std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
  machine().run(grid, block, shared_bytes, body);
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

void copy_later(void* to, const void* from, size_t bytes, size_t valid_bytes) {
  machine().fiber().copies.back().push_back({to, from, bytes, valid_bytes});
}

void commit_copies() {
  machine().fiber().copies.emplace_back();
}

void wait_copies(size_t groups_left) {
  auto& copies = machine().fiber().copies;
  while (copies.size() > groups_left + 1) {
    for (const Copy& copy : copies.front()) {
      std::memcpy(copy.to, copy.from, copy.valid_bytes);
      std::memset(static_cast<char*>(copy.to) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    }
    copies.erase(copies.begin());
  }
}

}  // namespace tessera::emulator
