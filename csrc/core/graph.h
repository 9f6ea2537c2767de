// A recorded sequence of kernels, run again by one call. While a device records, its ops queue nothing: their commands
// are kept. A graph holds all memory that its commands use, whether the recorded function made it or found it: no later
// tensor lies there, and a replay after the tensors are gone touches nothing of others.
#pragma once
#include <memory>
#include <vector>

#include "core/device.h"

namespace bnb {

class Graph {
 public:
  // From here on the kernels of this device are recorded. Throws if it records already.
  static void begin(Device& device);
  // Ends the recording. With `keep` false what was recorded is forgotten, and null returned.
  static std::shared_ptr<Graph> end(Device& device, bool keep);
  // Throws Code::unsupported if the device records: `what` needs to run, and can't.
  static void check_not_recording(Device& device, const char* what);

  Graph(Device& device, std::vector<Command> commands, GraphBlocks blocks, std::shared_ptr<Replays> replays);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay();
  // Whether every tensor from outside that it reads or writes still exists.
  bool has_tensors();

 private:
  // Shared with the worker: it may still have replays to do when the graph is disposed.
  struct Recording {
    std::vector<Command> commands;
    void* executable = nullptr;  // of the runtime, if it can make one; built by the worker at the first replay
  };
  static void run(Device& device, Recording& recording);
  static void* record(Device& device, const Recording& recording);

  Device& device_;
  std::unique_ptr<Recording> recording_;
  GraphBlocks blocks_;
  std::shared_ptr<Replays> replays_;  // shared with the storages that it writes to
  bool has_tensors_ = true;
  uint64_t looked_at_ = 0;  // the pool's given_up() when has_tensors_ was found
};

}  // namespace bnb
