// A recorded sequence of kernels, run again by one call. While a device records, its ops queue nothing: their commands
// are kept. The memory that the recorded function used belongs to the graph, so that no later tensor lies in it.
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

  Graph(Device& device, std::vector<Command> commands, PrivateBlocks blocks);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay();

 private:
  // Shared with the worker: it may still have replays to do when the graph is disposed.
  struct Recording {
    std::vector<Command> commands;
    void* executable = nullptr;  // of the runtime, if it can make one; built by the worker at the first replay
  };
  static void run(Device& device, Recording& recording);

  Device& device_;
  std::unique_ptr<Recording> recording_;
  PrivateBlocks blocks_;
};

}  // namespace bnb
