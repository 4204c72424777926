// Fibers: stacks and the switch between them, and what sanitizers must be told about both. Included
// by emulator.cc alone, which is compiled without instrumentation: its own state needs no watching.
//
// TESSERA_WATCH_ORDER (a build with the thread sanitizer): every CUDA thread is a thread, and a
// switch orders nothing. TESSERA_WATCH_ADDRESSES (the address sanitizer): every fiber has its
// stack.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>

#include "cuda_emulator/emulator.h"

#if defined(TESSERA_WATCH_ORDER)
#include <sanitizer/tsan_interface.h>
extern "C" {  // in the runtimes of gcc and clang, in no header
void __tsan_read_range(void* at, unsigned long bytes);
void __tsan_write_range(void* at, unsigned long bytes);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif
#if defined(TESSERA_WATCH_ADDRESSES)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

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

constexpr unsigned kMaxThreads = 1024;

// Of address space, as pages are taken when touched. Sanitizers make frames larger.
#if defined(TESSERA_WATCH_ORDER) || defined(TESSERA_WATCH_ADDRESSES)
constexpr size_t kStackBytes = 1 << 20;
#else
constexpr size_t kStackBytes = 256 << 10;
#endif

// A guard page under each, so that an overflow stops the process instead of corrupting a neighbour.
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

// ---- order, for the thread sanitizer: what a thread did before release(x) comes before what
// another does after acquire(x)

inline void order_release([[maybe_unused]] void* at) {
#if defined(TESSERA_WATCH_ORDER)
  __tsan_release(at);
#endif
}
inline void order_acquire([[maybe_unused]] void* at) {
#if defined(TESSERA_WATCH_ORDER)
  __tsan_acquire(at);
#endif
}
// This thread copies, or may copy at any time until it waits.
inline void report_copy([[maybe_unused]] void* to, [[maybe_unused]] const void* from,
                        [[maybe_unused]] size_t bytes, [[maybe_unused]] size_t valid_bytes) {
#if defined(TESSERA_WATCH_ORDER)
  __tsan_read_range(const_cast<void*>(from), valid_bytes);
  __tsan_write_range(to, bytes);
#endif
}

// ---- memory that nobody may touch, for the address sanitizer

inline void forbid([[maybe_unused]] void* at, [[maybe_unused]] size_t bytes) {
#if defined(TESSERA_WATCH_ADDRESSES)
  __asan_poison_memory_region(at, bytes);
#endif
}
inline void allow([[maybe_unused]] void* at, [[maybe_unused]] size_t bytes) {
#if defined(TESSERA_WATCH_ADDRESSES)
  __asan_unpoison_memory_region(at, bytes);
#endif
}

class Context {
 public:
  // The calling thread, which runs already.
  void adopt() {
#if defined(TESSERA_WATCH_ORDER)
    fiber_ = __tsan_get_current_fiber();
#endif
  }

  void start(unsigned char* top, void (*entry)()) {
#if defined(__x86_64__)
    void** words = reinterpret_cast<void**>(top);
    words[-1] = nullptr;  // the entry never returns; after `ret` the stack is as after a call
    words[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) words[-i] = nullptr;
    stack_ = words - 8;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = top - kStackBytes;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
#if defined(TESSERA_WATCH_ORDER)
    if (!fiber_) fiber_ = __tsan_create_fiber(0);
#endif
#if defined(TESSERA_WATCH_ADDRESSES)
    bottom_ = top - kStackBytes;
    bytes_ = kStackBytes;
    kept_ = nullptr;
    allow(top - kStackBytes, kStackBytes);  // frames that an error left behind
#endif
  }

  // The first thing that a started fiber does; `from` is who switched to it.
  void begin([[maybe_unused]] Context& from) {
#if defined(TESSERA_WATCH_ADDRESSES)
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.bytes_);
#endif
  }

  void switch_to(Context& other) {
#if defined(TESSERA_WATCH_ORDER)
    __tsan_switch_to_fiber(other.fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(TESSERA_WATCH_ADDRESSES)
    __sanitizer_start_switch_fiber(&kept_, other.bottom_, other.bytes_);
#endif
#if defined(__x86_64__)
    tessera_emulator_switch(&stack_, other.stack_);
#else
    swapcontext(&context_, &other.context_);
#endif
#if defined(TESSERA_WATCH_ADDRESSES)
    __sanitizer_finish_switch_fiber(kept_, nullptr, nullptr);
#endif
  }

 private:
#if defined(__x86_64__)
  void* stack_ = nullptr;
#else
  ucontext_t context_{};
#endif
#if defined(TESSERA_WATCH_ORDER)
  void* fiber_ = nullptr;
#endif
#if defined(TESSERA_WATCH_ADDRESSES)
  void* kept_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
#endif
};

}  // namespace tessera::emulator
