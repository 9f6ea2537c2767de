// The emulated GPU. Correct kernels run; incorrect ones are provoked:
//   order       threads run forward, in reverse or seeded random (BNB_SIMT_ORDER), switching at every rendezvous
//   divergence  a barrier or collective that not every thread reaches at the same line is an error
//   races       every byte of shared memory remembers its last writer and readers; two threads that no barrier
//               separates are an error
//   cp.async    bytes arrive at the wait that covers them and not before; touching them earlier is an error
//   bounds      accesses outside live device memory, shared arrays or the thread's own stack are errors
//   poison      shared memory starts as signalling NaN
// This file runs the threads; access.cc checks what they touch, collectives.cc exchanges data between lanes.
#include "cuda/emulation/simt.h"

#include <sys/mman.h>

#include <cstdio>

#include "core/error.h"
#include "cuda/emulation/machine.h"
#include "cuda/emulation/memory.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

Thread* current = nullptr;
uint3 block_index;
dim3 block_size, grid_size;

namespace {

unsigned char* reserve(size_t size) {
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) bnb::fail(bnb::Code::oom, "emulated device", "no address space for ", size, " bytes");
  return static_cast<unsigned char*>(p);
}

}  // namespace

Machine& machine() {
  static Machine* m = new Machine;  // never destroyed: workers may outlive static destructors
  return *m;
}

Machine::Machine() {
  stacks = reserve(kMaxThreads * (kStack + kPage));
  for (int i = 0; i < kMaxThreads; i++) mprotect(stacks + static_cast<size_t>(i) * (kStack + kPage), kPage, PROT_NONE);
  shared = reserve(kSharedBytes);
  shadow.resize(kSharedBytes);
  const char* wanted = std::getenv("BNB_SIMT_ORDER");
  const std::string text = wanted ? wanted : "forward";
  if (text == "reverse") {
    order = Order::reverse;
  } else if (text.rfind("random:", 0) == 0) {
    order = Order::random;
    random.seed(static_cast<unsigned>(std::strtoul(text.c_str() + 7, nullptr, 10)));
  } else if (text != "forward") {
    std::fprintf(stderr, "bitsandbytes-node: BNB_SIMT_ORDER must be forward, reverse or random:<seed>, got %s\n",
                 text.c_str());
    return;
  }
  order_name = text;
}

namespace {

// --- fibers
// ------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer, and continues on another stack.
extern "C" void bnb_switch_stack(void** save, void* to);
__asm__(
    ".text\n"
    ".local bnb_switch_stack\n"
    ".type bnb_switch_stack,@function\n"
    "bnb_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size bnb_switch_stack,.-bnb_switch_stack\n");
#endif

unsigned char* stack_of(int id) { return machine().stacks + static_cast<size_t>(id) * (kStack + kPage) + kPage; }

// Functions that leave a stack without returning on it: AddressSanitizer may keep nothing of them there.
#if defined(__SANITIZE_ADDRESS__)
#define BNB_SWITCHES __attribute__((no_sanitize("address")))
#else
#define BNB_SWITCHES
#endif

// From a thread to the scheduler.
BNB_SWITCHES void park(bool for_good) {
  Machine& m = machine();
  Fiber& f = self();
  (void)for_good;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, m.scheduler_stack, m.scheduler_stack_size);
#endif
#if defined(__x86_64__)
  bnb_switch_stack(&f.sp, m.sp);
#else
  swapcontext(&f.context, &m.context_of_scheduler);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
}

BNB_SWITCHES void run_thread() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
  m.body(m.context);
  self().state = State::done;
  park(true);
}

void prepare(Fiber& f) {
  f.groups.clear();
  f.open.clear();
  f.parity = 0;
  f.state = State::ready;
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(stack_of(f.id) + kStack);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&run_thread);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f.sp = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack_of(f.id);
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, run_thread, 0);
#endif
}

BNB_SWITCHES void resume(Fiber& f) {
  Machine& m = machine();
  current = &f;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_of(f.id), kStack);
#endif
#if defined(__x86_64__)
  bnb_switch_stack(&m.sp, f.sp);
#else
  swapcontext(&m.context_of_scheduler, &f.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  current = nullptr;
}

// --- scheduling
// --------------------------------------------------------------------------------------------------------

std::string position(const Fiber& f) {
  if (f.state == State::done) return name_of(f) + " has returned";
  return name_of(f) + " waits at " + f.what + " in line " + std::to_string(f.line);
}

// All of [first, last) must stand at the same place.
void check_together(int first, int last) {
  Machine& m = machine();
  const Fiber& a = m.fibers[static_cast<size_t>(first)];
  for (int i = first + 1; i < last; i++) {
    const Fiber& b = m.fibers[static_cast<size_t>(i)];
    if (a.state == b.state && (a.state == State::done || (a.line == b.line && std::strcmp(a.what, b.what) == 0)))
      continue;
    m.error = "divergence: " + position(a) + ", " + position(b);
    return;
  }
}

// Runs the ready threads of a warp, in order, to their next rendezvous. False when it stands at a block barrier.
bool step_warp(int warp) {
  Machine& m = machine();
  const int first = warp * kWarp, last = std::min(first + kWarp, m.count), n = last - first;
  int start = 0, stride = 1;
  if (m.order == Order::reverse) {
    start = n - 1;
    stride = n - 1;
  } else if (m.order == Order::random) {
    start = static_cast<int>(m.random() % static_cast<unsigned>(n));
    do stride = 1 + static_cast<int>(m.random() % static_cast<unsigned>(n));
    while (std::__gcd(stride, n) != 1);
  }
  for (int i = 0, at = start; i < n; i++, at = (at + stride) % n) {
    Fiber& f = m.fibers[static_cast<size_t>(first + at)];
    if (f.state != State::ready) continue;
    resume(f);
    if (!m.error.empty()) return false;
  }
  bool waits_for_warp = false;
  for (int i = first; i < last; i++) {
    const Fiber& f = m.fibers[static_cast<size_t>(i)];
    waits_for_warp |= f.state == State::waiting && f.scope == Scope::warp;
  }
  if (!waits_for_warp) return false;
  check_together(first, last);
  if (!m.error.empty()) return false;
  if (m.fibers[static_cast<size_t>(first)].what == std::string_view("__syncwarp"))
    m.warp_epoch[static_cast<size_t>(warp)]++;
  for (int i = first; i < last; i++) m.fibers[static_cast<size_t>(i)].state = State::ready;
  return true;
}

void run_block() {
  Machine& m = machine();
  poison_shared();
  m.block_epoch++;
  for (int i = 0; i < m.count; i++) {
    Fiber& f = m.fibers[static_cast<size_t>(i)];
    f.id = i;
    const auto id = static_cast<unsigned>(i);
    f.index = {id % block_size.x, id / block_size.x % block_size.y, id / (block_size.x * block_size.y)};
    prepare(f);
  }
  const int warps = (m.count + kWarp - 1) / kWarp;
  std::vector<int> active;
  for (;;) {
    active.clear();
    for (int w = 0; w < warps; w++) active.push_back(m.order == Order::reverse ? warps - 1 - w : w);
    while (!active.empty()) {
      const size_t pick = m.order == Order::random ? m.random() % active.size() : 0;
      if (step_warp(active[pick])) continue;
      if (!m.error.empty()) return;
      active.erase(active.begin() + static_cast<std::ptrdiff_t>(pick));
    }
    check_together(0, m.count);
    if (!m.error.empty() || m.fibers[0].state == State::done) return;
    m.block_epoch++;
    for (int i = 0; i < m.count; i++) m.fibers[static_cast<size_t>(i)].state = State::ready;
  }
}

std::vector<uint64_t> block_order(uint64_t blocks) {
  Machine& m = machine();
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; i++) order[i] = m.order == Order::reverse ? blocks - 1 - i : i;
  if (m.order == Order::random) std::shuffle(order.begin(), order.end(), m.random);
  return order;
}

}  // namespace

std::string name_of(const Fiber& f) {
  return "thread (" + std::to_string(f.index.x) + ", " + std::to_string(f.index.y) + ", " + std::to_string(f.index.z) +
         ")";
}

[[noreturn]] void fail_kernel(const std::string& message) {
  Machine& m = machine();
  if (m.error.empty()) m.error = message;
  self().state = State::done;
  park(true);
  std::abort();  // a dead thread is never resumed
}

void launch(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* context) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  grid_size = grid;
  block_size = block;
  m.host_frame = static_cast<const unsigned char*>(__builtin_frame_address(0));
  m.body = body;
  m.context = context;
  m.count = static_cast<int>(block.x * block.y * block.z);
  m.error.clear();
  m.trapped = false;
  m.arrays.clear();
  m.static_bytes = 0;
  m.dynamic_offset = kRedZone;
  m.dynamic_size = shared;
  m.shared_top = (kRedZone + shared + kRedZone + kRedZone - 1) / kRedZone * kRedZone;
  BNB_FORBID(m.shared, kSharedBytes);
  BNB_PERMIT(dynamic_shared(), shared);
  for (const uint64_t at : block_order(uint64_t{grid.x} * grid.y * grid.z)) {
    block_index = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                   static_cast<unsigned>(at / grid.x / grid.y)};
    run_block();
    if (m.error.empty()) continue;
    for (Shadow& s : m.shadow) s.pending = false;
    BNB_PERMIT(m.stacks, kMaxThreads * (kStack + kPage));  // the threads that the failure ended left their marks
    if (m.trapped) bnb::cuda::device_trapped();
    throw bnb::Error(bnb::Code::cuda, m.error + " (emulated device, BNB_SIMT_ORDER=" + m.order_name + ")");
  }
}

void rendezvous(Scope scope, const char* what, int line) {
  Fiber& f = self();
  f.state = State::waiting;
  f.scope = scope;
  f.what = what;
  f.line = line;
  park(false);
}

void trap() {
  machine().trapped = true;
  fail_kernel("trap: " + name_of(self()) + " stopped the kernel");
}

}  // namespace simt
