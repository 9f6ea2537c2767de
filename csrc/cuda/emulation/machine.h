// What the parts of the emulator share: fibers, the blocks that are alive with their shared memory, and the machine.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulation/banks.h"
#include "cuda/emulation/simt.h"
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

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
constexpr int kResident = 4;  // blocks alive at once in random order
constexpr uint32_t kPoison = 0x7fa0dead;

enum class State : uint8_t { ready, waiting, done };

struct PendingCopy {
  unsigned char* to;
  const unsigned char* from;
  size_t size;
  bool valid;
};

struct Block;

struct Fiber : Thread {
  int id = 0;  // in its block
  Block* block = nullptr;
  State state = State::done;
  Scope scope = Scope::warp;
  const char* what = "";
  int line = 0;
  uint32_t steps = 0;                            // accesses since the last rendezvous
  uint32_t vector = 0, vector_size = 0;          // shared memory that a noted vector access covers
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

// A block that is alive. Its threads, their stacks and its shared memory are those of its slot.
struct Block {
  int slot = 0;
  uint3 index{};
  Fiber* fibers = nullptr;          // [kMaxThreads]
  unsigned char* shared = nullptr;  // [kSharedBytes]
  Shadow* shadow = nullptr;         // [kSharedBytes]
  unsigned char* lanes = nullptr;   // [2][kMaxThreads][kLaneBytes]
  uint32_t epoch = 1;
  std::vector<uint32_t> warp_epoch = std::vector<uint32_t>(kMaxThreads / kWarp, 1);
  std::vector<int> active;  // warps that do not stand at a block barrier
};

enum class Order { forward, reverse, random };

struct Machine {
  std::mutex mutex;  // one kernel at a time in this process
  std::vector<Block> blocks = std::vector<Block>(kResident);
  // Of all slots, one after another.
  std::vector<Fiber> fibers = std::vector<Fiber>(kResident * kMaxThreads);
  std::vector<unsigned char> lanes = std::vector<unsigned char>(kResident * 2 * kMaxThreads * kLaneBytes);
  unsigned char* stacks = nullptr;
  unsigned char* shared = nullptr;
  // The same in every block.
  std::vector<SharedArray> arrays;
  size_t static_bytes = 0, shared_top = 0;
  size_t dynamic_offset = 0, dynamic_size = 0;
  size_t shared_limit = 0;  // of static and dynamic bytes
  const std::function<void()>* body = nullptr;
  int count = 0;                              // threads of a block
  const unsigned char* host_frame = nullptr;  // of launch(): the kernel's arguments lie above it
  std::string error;
  bool trapped = false;
  Order order = Order::forward;
  std::string order_name = "forward";
  std::minstd_rand random;
  std::unique_ptr<BankCounter> banks;  // null unless wanted
  int until_yield = 0;                 // accesses of device memory until a thread is interrupted; 0: it is not
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

Machine& machine();
inline Fiber& self() { return *static_cast<Fiber*>(current); }
std::string name_of(const Fiber& f);
std::string name_of(const Block& b);
// Ends the kernel from inside a thread. Nothing on the fibers' stacks needs to be unwound.
[[noreturn]] void fail_kernel(const std::string& message);
// Interrupts the running thread: others run before it goes on.
void yield();
// Counts an access of the running thread, which may be interrupted before it.
void step();
// Checks one access of the running thread; none runs outside a kernel. `site`: where in the code,
// null for what is counted elsewhere.
void access(const void* address, size_t size, bool write, const void* site);
void check_alignment(const void* p, size_t size, size_t alignment, bool write);
// Atomics do not race with each other.
void check_atomic(const void* address, size_t size);
void poison_shared(const Block& block);

}  // namespace simt
