// The emulated GPU. Correct kernels run; incorrect ones are provoked:
//   order       threads run forward, in reverse or seeded random (BNB_SIMT_ORDER), switching at every rendezvous
//   divergence  a barrier or collective that not every thread reaches at the same line is an error
//   races       every byte of shared memory remembers its last writer and readers; two threads that no barrier
//               separates are an error
//   cp.async    bytes arrive at the wait that covers them and not before; touching them earlier is an error
//   bounds      accesses outside live device memory, shared arrays or the thread's own stack are errors
//   poison      shared memory starts as signalling NaN
// The compiler reports each load and store of a kernel: its file is compiled with -fsanitize=thread, and the
// functions that this calls are the ones at the end of this file. A build with AddressSanitizer has no such calls.

#include "cuda/emulation/simt.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/emulation/memory.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

Thread* current = nullptr;
uint3 block_index;
dim3 block_size, grid_size;

namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kSharedBytes = 512 << 10;  // arrays, dynamic memory and the red zones between them
constexpr size_t kRedZone = 128;
constexpr size_t kStaticLimit = 48 << 10;
constexpr size_t kHostFrames = 64 << 10;
constexpr uint32_t kPoison = 0x7fa0dead;

enum class State : uint8_t { ready, waiting, done };

struct PendingCopy {
  unsigned char* to;
  const unsigned char* from;
  size_t size;
  bool valid;
};

struct Fiber : Thread {
  int id = 0;
  State state = State::done;
  Scope scope = Scope::warp;
  const char* what = "";
  int line = 0;
  int parity = 0;                                // which of the two exchange buffers comes next
  std::vector<std::vector<PendingCopy>> groups;  // committed, oldest first
  std::vector<PendingCopy> open;
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
};

// One byte of shared memory. Epochs only grow, so that nothing has to be reset between blocks.
struct Shadow {
  uint32_t write_block = 0, write_warp = 0;
  uint32_t read_block = 0, read_warp = 0;
  uint16_t writer = 0, reader = 0;
  bool other_lanes = false, other_warps = false;  // more readers than `reader` since
  bool pending = false;                           // a cp.async will write it
};

struct SharedArray {
  const void* site;
  size_t offset, size;
};

enum class Order { forward, reverse, random };

struct Machine {
  std::mutex mutex;  // one kernel at a time in this process
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
  unsigned char* stacks = nullptr;
  unsigned char* shared = nullptr;
  std::vector<Shadow> shadow;
  std::vector<SharedArray> arrays;
  size_t static_bytes = 0, shared_top = 0;
  size_t dynamic_offset = 0, dynamic_size = 0;
  uint32_t block_epoch = 1;
  std::vector<uint32_t> warp_epoch = std::vector<uint32_t>(kMaxThreads / kWarp, 1);
  std::vector<unsigned char> lanes = std::vector<unsigned char>(2 * kMaxThreads * kLaneBytes);
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  int count = 0;
  const unsigned char* host_frame = nullptr;  // of launch(): the kernel's arguments lie above it
  std::string error;
  bool trapped = false;
  Order order = Order::forward;
  std::string order_name = "forward";
  std::minstd_rand random;
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context_of_scheduler;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
#endif

  Machine();
};

Machine& machine() {
  static Machine* m = new Machine;  // never destroyed: workers may outlive static destructors
  return *m;
}

Fiber& self() { return *static_cast<Fiber*>(current); }

unsigned char* reserve(size_t size) {
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) bnb::fail(bnb::Code::oom, "emulated device", "no address space for ", size, " bytes");
  return static_cast<unsigned char*>(p);
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

// From a thread to the scheduler.
void park(bool for_good) {
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

void run_thread() {
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

void resume(Fiber& f) {
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

std::string name_of(const Fiber& f) {
  return "thread (" + std::to_string(f.index.x) + ", " + std::to_string(f.index.y) + ", " + std::to_string(f.index.z) +
         ")";
}

// Ends the kernel from inside a thread. Nothing on the fibers' stacks needs to be unwound.
[[noreturn]] void fail_kernel(const std::string& message) {
  Machine& m = machine();
  if (m.error.empty()) m.error = message;
  self().state = State::done;
  park(true);
  std::abort();  // a dead thread is never resumed
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

void fill_with_poison(unsigned char* from, size_t size) {
  for (size_t i = 0; i < size; i++) from[i] = static_cast<unsigned char>(kPoison >> (8 * (i % 4)));
}

void poison_shared() {
  Machine& m = machine();
  fill_with_poison(m.shared + m.dynamic_offset, m.dynamic_size);
  for (const SharedArray& a : m.arrays) fill_with_poison(m.shared + a.offset, a.size);
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

// --- shared memory
// -----------------------------------------------------------------------------------------------------

std::string place(const unsigned char* p) { return "shared byte " + std::to_string(p - machine().shared); }

bool in_shared_array(size_t offset, size_t size) {
  const Machine& m = machine();
  if (offset >= m.dynamic_offset && offset + size <= m.dynamic_offset + m.dynamic_size) return true;
  for (const SharedArray& a : m.arrays)
    if (offset >= a.offset && offset + size <= a.offset + a.size) return true;
  return false;
}

void race(const char* first, int other, const char* second, const unsigned char* p) {
  fail_kernel(std::string("race: ") + first + " by " + name_of(machine().fibers[static_cast<size_t>(other)]) + " and " +
              second + " by " + name_of(self()) + " of " + place(p) + " with no barrier between them");
}

void shared_access(const unsigned char* p, size_t size, bool write, bool delivery = false) {
  Machine& m = machine();
  const size_t offset = static_cast<size_t>(p - m.shared);
  if (!in_shared_array(offset, size))
    fail_kernel("out of bounds: " + name_of(self()) + (write ? " writes " : " reads ") + std::to_string(size) +
                " bytes at " + place(p) + ", outside every shared array");
  const int me = self().id, warp = me / kWarp;
  const uint32_t block = m.block_epoch, now = m.warp_epoch[static_cast<size_t>(warp)];
  for (size_t i = 0; i < size; i++) {
    Shadow& s = m.shadow[offset + i];
    if (s.pending && !delivery)
      fail_kernel("cp.async: " + name_of(self()) + (write ? " writes " : " reads ") + place(p + i) +
                  " before the copy to it was waited for");
    if (s.write_block == block && s.writer != me && !(s.writer / kWarp == warp && s.write_warp < now))
      race("write", s.writer, write ? "write" : "read", p + i);
    if (write) {
      if (s.read_block == block) {
        const bool same_warp = s.reader / kWarp == warp && !s.other_warps;
        const bool mine = s.reader == me && !s.other_lanes && !s.other_warps;
        if (!mine && !(same_warp && s.read_warp < now)) race("read", s.reader, "write", p + i);
      }
      s.write_block = block;
      s.write_warp = now;
      s.writer = static_cast<uint16_t>(me);
    } else if (s.read_block != block) {
      s.read_block = block;
      s.read_warp = now;
      s.reader = static_cast<uint16_t>(me);
      s.other_lanes = s.other_warps = false;
    } else if (s.reader / kWarp != warp) {
      s.other_warps = true;
    } else if (s.read_warp < now) {
      s.read_warp = now;
      s.reader = static_cast<uint16_t>(me);
      s.other_lanes = false;
    } else if (s.reader != me) {
      s.other_lanes = true;
    }
  }
}

void deliver(const PendingCopy& copy) {
  Machine& m = machine();
  const size_t offset = static_cast<size_t>(copy.to - m.shared);
  shared_access(copy.to, copy.size, true, true);
  for (size_t i = 0; i < copy.size; i++) m.shadow[offset + i].pending = false;
  if (copy.valid)
    std::memcpy(copy.to, copy.from, copy.size);
  else
    std::memset(copy.to, 0, copy.size);
}

// What a kernel may touch besides shared memory: live device memory, the threads' stacks, the addon's constants.
void global_access(const unsigned char* p, size_t size, bool write) {
  const Machine& m = machine();
  if (static_cast<size_t>(p - m.stacks) < kMaxThreads * (kStack + kPage)) return;
  // threadIdx lives in the fiber.
  const auto* fibers = reinterpret_cast<const unsigned char*>(m.fibers.data());
  if (static_cast<size_t>(p - fibers) < kMaxThreads * sizeof(Fiber)) return;
  if (static_cast<size_t>(p - m.host_frame) < kHostFrames) return;
  if (static_cast<size_t>(p - m.lanes.data()) < m.lanes.size()) return;  // a shuffle, inlined into the kernel
  if (bnb::cuda::is_device_memory(p, size) || bnb::cuda::is_module_memory(p)) return;
  fail_kernel("illegal address: " + name_of(self()) + " of block (" + std::to_string(block_index.x) + ", " +
              std::to_string(block_index.y) + ", " + std::to_string(block_index.z) + ")" +
              (write ? " writes " : " reads ") + std::to_string(size) +
              (bnb::cuda::is_arena(p) ? " bytes outside every live block of device memory" : " bytes of host memory"));
}

void access(const void* address, size_t size, bool write) {
  if (!current) return;
  const auto* p = static_cast<const unsigned char*>(address);
  if (static_cast<size_t>(p - machine().shared) < kSharedBytes)
    shared_access(p, size, write);
  else
    global_access(p, size, write);
}

}  // namespace

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

void check_access(const void* p, size_t size, size_t alignment, bool write) {
  if (!current) return;
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    fail_kernel("misaligned address: " + name_of(self()) + (write ? " writes " : " reads ") + std::to_string(size) +
                " bytes at an address that is no multiple of " + std::to_string(alignment));
}

void* shared_array(const void* site, const char* name, size_t size, size_t alignment) {
  Machine& m = machine();
  for (const SharedArray& a : m.arrays)
    if (a.site == site) return m.shared + a.offset;
  const size_t unit = std::max(alignment, size_t{128});
  const size_t offset = (m.shared_top + unit - 1) / unit * unit;
  m.static_bytes += size;
  if (m.static_bytes > kStaticLimit || offset + size + kRedZone > kSharedBytes)
    fail_kernel(std::string("shared memory: ") + name + " makes " + std::to_string(m.static_bytes) +
                " bytes, a kernel may declare 48 KB");
  m.arrays.push_back({site, offset, size});
  m.shared_top = (offset + size + kRedZone + 127) / 128 * 128;
  BNB_PERMIT(m.shared + offset, size);
  // The first thread to come here: nobody has touched it in this block.
  fill_with_poison(m.shared + offset, size);
  return m.shared + offset;
}

unsigned char* dynamic_shared() { return machine().shared + machine().dynamic_offset; }

void cp_async(void* to, const void* from, size_t size, bool valid) {
  auto* target = static_cast<unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  check_access(to, size, size, true);
  Machine& m = machine();
  if (static_cast<size_t>(target - m.shared) >= kSharedBytes)
    fail_kernel("cp.async: " + name_of(self()) + " copies to an address outside shared memory");
  if (valid) {
    check_access(from, size, size, false);
    global_access(source, size, false);
  }
  shared_access(target, size, true);
  for (size_t i = 0; i < size; i++) m.shadow[static_cast<size_t>(target - m.shared) + i].pending = true;
  std::memset(target, 0xfa, size);
  self().open.push_back({target, source, size, valid});
}

void cp_async_commit() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void cp_async_wait(int groups_under_way) {
  auto& groups = self().groups;
  while (static_cast<int>(groups.size()) > groups_under_way) {
    for (const PendingCopy& copy : groups.front()) deliver(copy);
    groups.erase(groups.begin());
  }
}

int lane() { return self().id % kWarp; }

const unsigned char* exchange(const void* bytes, size_t size, const char* what, int line) {
  Machine& m = machine();
  Fiber& f = self();
  // Two buffers in turn: nobody can be a whole collective ahead of a lane that still reads the last one.
  unsigned char* all =
      m.lanes.data() +
      (static_cast<size_t>(f.parity) * kMaxThreads + static_cast<size_t>(f.id / kWarp * kWarp)) * kLaneBytes;
  f.parity ^= 1;
  std::memcpy(all + (f.id % kWarp) * kLaneBytes, bytes, size);
  rendezvous(Scope::warp, what, line);
  return all;
}

uint32_t ballot(const char* what, int line, bool predicate) {
  const unsigned char* all = exchange(&predicate, sizeof predicate, what, line);
  uint32_t mask = 0;
  for (int i = 0; i < kWarp; i++) mask |= static_cast<uint32_t>(all[i * kLaneBytes] != 0) << i;
  return mask;
}

void ldmatrix(uint32_t* r, int count, const void* row, bool transpose) {
  const unsigned char* all = exchange(&row, sizeof row, "ldmatrix", 0);
  auto row_of = [&](int matrix, int index) {
    const void* p;
    std::memcpy(&p, all + (matrix * 8 + index) * kLaneBytes, sizeof p);
    return static_cast<const unsigned char*>(p);
  };
  if (lane() < count * 8) check_access(row, 16, 16, false);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < count; i++) {
    uint16_t half[2];
    for (int j = 0; j < 2; j++) {
      const unsigned char* p = transpose ? row_of(i, 2 * t + j) + 2 * g : row_of(i, g) + 2 * (2 * t + j);
      access(p, 2, false);
      std::memcpy(&half[j], p, 2);
    }
    r[i] = static_cast<uint32_t>(half[1]) << 16 | half[0];
  }
}

// Lane (g, t) holds a at rows g and g + 8, k 2t..2t+1 and k + 8; b at column g. Sums run over k in order.
void mma_float(float* d, const float* a, int a_count, const float* b, int b_count, int k) {
  float mine[kLaneBytes / sizeof(float)];
  std::copy(a, a + a_count, mine);
  std::copy(b, b + b_count, mine + a_count);
  const unsigned char* all = exchange(mine, static_cast<size_t>(a_count + b_count) * sizeof(float), "mma", k);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    float sum = d[i];
    for (int kk = 0; kk < k; kk++) {
      const int pair = kk % 8 / 2, half = kk % 2, upper = kk / 8;
      const auto* from_a = reinterpret_cast<const float*>(all + (row % 8 * 4 + pair) * kLaneBytes);
      const auto* from_b = reinterpret_cast<const float*>(all + (column * 4 + pair) * kLaneBytes);
      sum += from_a[(upper * 2 + row / 8) * 2 + half] * from_b[a_count + upper * 2 + half];
    }
    d[i] = sum;
  }
}

void mma_int(int32_t* d, const uint32_t* a, int a_count, const uint32_t* b, int b_count, int rows, int k) {
  uint32_t mine[kLaneBytes / sizeof(uint32_t)];
  std::copy(a, a + a_count, mine);
  std::copy(b, b + b_count, mine + a_count);
  const unsigned char* all = exchange(mine, static_cast<size_t>(a_count + b_count) * sizeof(uint32_t), "mma", k);
  const int g = lane() / 4, t = lane() % 4;
  const int row_blocks = rows / 8;
  for (int i = 0; i < rows / 4; i++) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    for (int kk = 0; kk < k; kk++) {
      const int quad = kk % 16 / 4, byte = kk % 4, upper = kk / 16;
      const auto* from_a = reinterpret_cast<const uint32_t*>(all + (row % 8 * 4 + quad) * kLaneBytes);
      const auto* from_b = reinterpret_cast<const uint32_t*>(all + (column * 4 + quad) * kLaneBytes);
      d[i] += static_cast<int8_t>(from_a[upper * row_blocks + row / 8] >> (8 * byte)) *
              static_cast<int8_t>(from_b[a_count + upper] >> (8 * byte));
    }
  }
}

}  // namespace simt

// --- what the compiler calls before each load and store of a kernel file ---------------------------------------------

#define BNB_ACCESS(size)                                                      \
  void __tsan_read##size(void* p) { simt::access(p, size, false); }           \
  void __tsan_write##size(void* p) { simt::access(p, size, true); }           \
  void __tsan_unaligned_read##size(void* p) { simt::access(p, size, false); } \
  void __tsan_unaligned_write##size(void* p) { simt::access(p, size, true); }

extern "C" {
BNB_ACCESS(1)
BNB_ACCESS(2)
BNB_ACCESS(4)
BNB_ACCESS(8)
BNB_ACCESS(16)
void __tsan_read_range(void* p, size_t size) { simt::access(p, size, false); }
void __tsan_write_range(void* p, size_t size) { simt::access(p, size, true); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
