// The threads of one block as fibers of one operating-system thread: each runs until it waits or returns.
#ifndef DDPM_RT_TESTS_CUDA_EMULATION_FIBERS_H_
#define DDPM_RT_TESTS_CUDA_EMULATION_FIBERS_H_

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#else
#define DDPM_RT_JUMPS 1  // swapcontext asks the kernel for the signal mask twice a switch; sanitizers follow it alone
#endif

namespace cuda_emulation {

class Fibers {
 public:
  // Runs body(0) .. body(count - 1). Between two barriers they run one after the other, backwards if asked: code that
  // lacks a barrier gives other results then. A barrier that not all of them reach ends the process.
  void run(size_t count, bool is_backwards, const std::function<void(size_t)>& body) {
    while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>(this));
    body_ = &body;
    for (size_t i = 0; i < count; ++i) fibers_[i]->state = kReady;
    for (size_t running = count; running > 0;) {
      size_t waiting = 0;
      for (size_t k = 0; k < count; ++k) {
        current_ = is_backwards ? count - 1 - k : k;
        Fiber& fiber = *fibers_[current_];
        if (fiber.state == kDone) continue;
        enter(&fiber);
        if (fiber.state == kDone) --running;
        if (fiber.state == kWaiting) ++waiting;
      }
      if (waiting != 0 && waiting != count) {
        std::fprintf(stderr, "cuda_emulation: %zu of %zu threads wait at a barrier that the others have left behind\n",
                     waiting, count);
        std::abort();
      }
    }
  }

  // Called within body.
  void wait() {
    Fiber& fiber = *fibers_[current_];
    fiber.state = kWaiting;
    leave(&fiber);
  }

 private:
  enum State { kReady, kWaiting, kDone };
  static constexpr size_t kStackBytes = size_t{128} << 10;

  struct Fiber {
    explicit Fiber(Fibers* owner) : owner(owner), stack(new char[kStackBytes]) {
      getcontext(&context);
      context.uc_stack.ss_sp = stack.get();
      context.uc_stack.ss_size = kStackBytes;
      context.uc_link = nullptr;
      const auto address = reinterpret_cast<uintptr_t>(this);
      makecontext(&context, reinterpret_cast<void (*)()>(&Fibers::main), 2, static_cast<unsigned>(address >> 32),
                  static_cast<unsigned>(address));
#if defined(__SANITIZE_THREAD__)
      handle = __tsan_create_fiber(0);
#endif
    }
#if defined(__SANITIZE_THREAD__)
    ~Fiber() { __tsan_destroy_fiber(handle); }
#endif
    Fibers* owner;
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf at;
    bool has_begun = false;
    State state = kDone;
    void* handle = nullptr;  // a sanitizer's idea of this stack
  };

  static void main(unsigned high, unsigned low) {
    Fiber* const fiber = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
    Fibers* const owner = fiber->owner;
    owner->arrive(nullptr);
    for (;;) {
      (*owner->body_)(owner->current_);
      fiber->state = kDone;
      owner->leave(fiber);
    }
  }

#if defined(DDPM_RT_JUMPS)
  __attribute__((noinline)) void enter(Fiber* fiber) {
    if (_setjmp(scheduler_at_) != 0) return;
    if (fiber->has_begun) _longjmp(fiber->at, 1);
    fiber->has_begun = true;
    setcontext(&fiber->context);
  }
  __attribute__((noinline)) void leave(Fiber* fiber) {
    if (_setjmp(fiber->at) == 0) _longjmp(scheduler_at_, 1);
  }
#else
  void enter(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_handle_, fiber->stack.get(), kStackBytes);
#elif defined(__SANITIZE_THREAD__)
    scheduler_handle_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber->handle, 0);
#endif
    swapcontext(&scheduler_, &fiber->context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_handle_, nullptr, nullptr);
#endif
  }

  void leave(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fiber->handle, scheduler_stack_, scheduler_bytes_);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_handle_, 0);
#endif
    swapcontext(&fiber->context, &scheduler_);
    arrive(fiber);
  }
#endif

  void arrive(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber != nullptr ? fiber->handle : nullptr, &scheduler_stack_, &scheduler_bytes_);
#else
    static_cast<void>(fiber);
#endif
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void(size_t)>* body_ = nullptr;
  size_t current_ = 0;
  ucontext_t scheduler_;
  jmp_buf scheduler_at_;
  [[maybe_unused]] void* scheduler_handle_ = nullptr;  // these three are for sanitizers
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] size_t scheduler_bytes_ = 0;
};

}  // namespace cuda_emulation

#endif  // DDPM_RT_TESTS_CUDA_EMULATION_FIBERS_H_
