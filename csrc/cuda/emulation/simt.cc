// The emulated GPU. Correct kernels run; incorrect ones are provoked:
//   order       threads and blocks run forward, in reverse or seeded random (BNB_SIMT_ORDER). Threads switch at every
//               rendezvous. In random order several blocks are alive at once, and threads are also interrupted at
//               atomics and at some accesses of device memory
//   hangs       a thread that waits for another block is an error, because no GPU promises that both run
//   divergence  a barrier or collective that not every thread reaches at the same line is an error
//   races       every byte of shared memory remembers its last writer and readers; two threads that no barrier
//               separates are an error
//   cp.async    bytes arrive at the wait that covers them and not before; touching them earlier is an error
//   bounds      accesses outside live device memory, shared arrays or the thread's own stack are errors
//   limits      more shared memory, static and dynamic, than the kernel was allowed or the card has is an error
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

__thread Thread* current = nullptr;
uint3 block_index;
dim3 block_size, grid_size;

namespace {

// A thread that makes so many accesses or atomics between two barriers waits for what does not come.
constexpr uint32_t kMostSteps = 1u << 26, kMostAtomics = 1u << 18;
// In random order a thread is interrupted at one access of device memory in so many, on average.
constexpr int kAccesses = 64;

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
  stacks = reserve(kResident * kMaxThreads * (kStack + kPage));
  for (int i = 0; i < kResident * kMaxThreads; i++)
    mprotect(stacks + static_cast<size_t>(i) * (kStack + kPage), kPage, PROT_NONE);
  shared = reserve(kResident * kSharedBytes);
  auto* shadow = reinterpret_cast<Shadow*>(reserve(kResident * kSharedBytes * sizeof(Shadow)));
  for (int slot = 0; slot < kResident; slot++) {
    const auto at = static_cast<size_t>(slot);
    Block& b = blocks[at];
    b.slot = slot;
    b.fibers = fibers.data() + at * kMaxThreads;
    b.shared = shared + at * kSharedBytes;
    b.shadow = shadow + at * kSharedBytes;
    b.lanes = lanes.data() + at * 2 * kMaxThreads * kLaneBytes;
    for (int i = 0; i < kMaxThreads; i++) {
      b.fibers[i].id = i;
      b.fibers[i].block = &b;
    }
  }
  if (const char* file = std::getenv("BNB_SIMT_BANKS")) banks = std::make_unique<BankCounter>(file);
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

unsigned char* stack_of(const Fiber& f) {
  const int at = f.block->slot * kMaxThreads + f.id;
  return machine().stacks + static_cast<size_t>(at) * (kStack + kPage) + kPage;
}

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
  (*m.body)();
  self().state = State::done;
  park(true);
}

void prepare(Fiber& f) {
  f.groups.clear();
  f.open.clear();
  f.parity = 0;
  f.steps = 0;
  f.state = State::ready;
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(stack_of(f) + kStack);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&run_thread);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f.sp = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack_of(f);
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, run_thread, 0);
#endif
}

BNB_SWITCHES void resume(Fiber& f) {
  Machine& m = machine();
  current = &f;
  block_index = f.block->index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_of(f), kStack);
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
void check_together(const Block& block, int first, int last) {
  const Fiber& a = block.fibers[first];
  for (int i = first + 1; i < last; i++) {
    const Fiber& b = block.fibers[i];
    if (a.state == b.state && (a.state == State::done || (a.line == b.line && std::strcmp(a.what, b.what) == 0)))
      continue;
    machine().error = "divergence: " + position(a) + ", " + position(b);
    return;
  }
}

// Runs the ready threads of a warp, in order, to their next rendezvous or interruption. False when it stands at a block
// barrier.
bool step_warp(Block& block, int warp) {
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
    Fiber& f = block.fibers[first + at];
    if (f.state != State::ready) continue;
    resume(f);
    if (!m.error.empty()) return false;
  }
  bool interrupted = false, waits_for_warp = false;
  for (int i = first; i < last; i++) {
    const Fiber& f = block.fibers[i];
    interrupted |= f.state == State::ready;
    waits_for_warp |= f.state == State::waiting && f.scope == Scope::warp;
  }
  if (interrupted) return true;
  if (m.banks) m.banks->flush(block.slot * kMaxThreads / kWarp + warp);
  if (!waits_for_warp) return false;
  check_together(block, first, last);
  if (!m.error.empty()) return false;
  if (block.fibers[first].what == std::string_view("__syncwarp")) block.warp_epoch[static_cast<size_t>(warp)]++;
  for (int i = first; i < last; i++) block.fibers[i].state = State::ready;
  return true;
}

void activate_warps(Block& block) {
  const Machine& m = machine();
  const int warps = (m.count + kWarp - 1) / kWarp;
  for (int w = 0; w < warps; w++) block.active.push_back(m.order == Order::reverse ? warps - 1 - w : w);
}

void start_block(Block& block, uint64_t at) {
  block.index = {static_cast<unsigned>(at % grid_size.x), static_cast<unsigned>(at / grid_size.x % grid_size.y),
                 static_cast<unsigned>(at / grid_size.x / grid_size.y)};
  poison_shared(block);
  block.epoch++;
  for (int i = 0; i < machine().count; i++) {
    Fiber& f = block.fibers[i];
    const auto id = static_cast<unsigned>(i);
    f.index = {id % block_size.x, id / block_size.x % block_size.y, id / (block_size.x * block_size.y)};
    prepare(f);
  }
  block.active.clear();
  activate_warps(block);
}

// Lets one warp of the block go on. False when all have returned or the kernel has failed.
bool step_block(Block& block) {
  Machine& m = machine();
  const size_t pick = m.order == Order::random ? m.random() % block.active.size() : 0;
  if (step_warp(block, block.active[pick])) return true;
  if (!m.error.empty()) return false;
  block.active.erase(block.active.begin() + static_cast<std::ptrdiff_t>(pick));
  if (!block.active.empty()) return true;
  check_together(block, 0, m.count);
  if (!m.error.empty() || block.fibers[0].state == State::done) return false;
  block.epoch++;
  for (int i = 0; i < m.count; i++) block.fibers[i].state = State::ready;
  activate_warps(block);
  return true;
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

std::string name_of(const Block& b) {
  return "block (" + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ", " + std::to_string(b.index.z) +
         ")";
}

[[noreturn]] void fail_kernel(const std::string& message) {
  Machine& m = machine();
  if (m.error.empty()) m.error = message;
  self().state = State::done;
  park(true);
  std::abort();  // a dead thread is never resumed
}

namespace {

// Makes the machine fit for the next launch, and throws.
[[noreturn]] void fail_launch() {
  Machine& m = machine();
  if (m.banks) m.banks->finish(grid_size, block_size, true);
  for (Block& b : m.blocks)
    for (size_t i = 0; i < kSharedBytes; i++) b.shadow[i].pending = false;
  // The threads that the failure ended have left their marks.
  BNB_PERMIT(m.stacks, kResident * kMaxThreads * (kStack + kPage));
  if (m.trapped) bnb::cuda::device_trapped();
  throw bnb::Error(bnb::Code::cuda, m.error + " (emulated device, BNB_SIMT_ORDER=" + m.order_name + ")");
}

}  // namespace

void launch(dim3 grid, dim3 block, size_t shared, size_t limit, const std::function<void()>& body) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  grid_size = grid;
  block_size = block;
  m.host_frame = static_cast<const unsigned char*>(__builtin_frame_address(0));
  m.body = &body;
  m.count = static_cast<int>(block.x * block.y * block.z);
  m.error.clear();
  m.trapped = false;
  m.arrays.clear();
  m.static_bytes = 0;
  m.shared_limit = limit;
  m.dynamic_offset = kRedZone;
  m.dynamic_size = shared;
  m.shared_top = (kRedZone + shared + kRedZone + kRedZone - 1) / kRedZone * kRedZone;
  if (shared > limit)
    throw bnb::Error(bnb::Code::cuda, "shared memory: the launch asks for " + std::to_string(shared) +
                                          " bytes, the kernel may have " + std::to_string(limit));
  const std::vector<uint64_t> order = block_order(uint64_t{grid.x} * grid.y * grid.z);
  const size_t resident = std::min<size_t>(m.order == Order::random ? kResident : 1, order.size());
  m.until_yield = m.order == Order::random ? kAccesses : 0;
  std::vector<Block*> live;
  size_t next = 0;
  for (; next < resident; next++) {
    live.push_back(&m.blocks[next]);
    BNB_FORBID(live.back()->shared, kSharedBytes);
    BNB_PERMIT(live.back()->shared + m.dynamic_offset, shared);
    start_block(*live.back(), order[next]);
  }
  while (!live.empty()) {
    const size_t pick = live.size() > 1 ? m.random() % live.size() : 0;
    if (step_block(*live[pick])) continue;
    if (!m.error.empty()) fail_launch();
    if (next < order.size())
      start_block(*live[pick], order[next++]);
    else
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(pick));
  }
  if (m.banks) m.banks->finish(grid, block, false);
}

void rendezvous(Scope scope, const char* what, int line) {
  Fiber& f = self();
  f.steps = f.vector_size = 0;
  f.state = State::waiting;
  f.scope = scope;
  f.what = what;
  f.line = line;
  park(false);
}

void yield() {
  // It stays ready.
  park(false);
}

void step() {
  Machine& m = machine();
  Fiber& f = self();
  if (++f.steps > kMostSteps)
    fail_kernel("hang: " + name_of(f) + " of " + name_of(*f.block) +
                " goes on without coming to a barrier: does it wait for another block?");
  if (m.until_yield == 0 || --m.until_yield > 0) return;
  m.until_yield = 1 + static_cast<int>(m.random() % (2 * kAccesses));
  yield();
}

namespace {

void maybe_yield() {
  if (machine().until_yield > 0 && machine().random() % 2 == 0) yield();
}

}  // namespace

void begin_atomic(const void* p, size_t size) {
  if (!current) return;
  check_atomic(p, size);
  self().steps += kMostSteps / kMostAtomics;
  step();
  maybe_yield();
}

void end_atomic() {
  if (current) maybe_yield();
}

void trap() {
  machine().trapped = true;
  fail_kernel("trap: " + name_of(self()) + " stopped the kernel");
}

}  // namespace simt
