// On a CPU a replay runs the recorded commands one after another. A GPU's runtime turns them, at the first replay,
// into a graph of its own that is launched as one.

#include "core/graph.h"

namespace bnb {

void Graph::begin(Device& device) {
  check_argument(!device.stream().is_recording(), "graph", "a recording must end before the next begins on ",
                 device.str());
  device.stream().begin_recording();
  device.pool().begin_recording();
  device.changes().begin_recording();
}

std::shared_ptr<Graph> Graph::end(Device& device, bool keep) {
  check_argument(device.stream().is_recording(), "graph", "there is no recording to end on ", device.str());
  std::vector<Command> commands = device.stream().end_recording();
  GraphBlocks blocks = device.pool().end_recording();
  auto graph =
      std::make_shared<Graph>(device, std::move(commands), std::move(blocks), device.changes().end_recording());
  return keep ? graph : nullptr;
}

void Graph::check_not_recording(Device& device, const char* what) {
  if (device.stream().is_recording())
    fail(Code::unsupported, what, "can't be part of a graph on ", device.str(),
         ": a recorded function may only call ops; make its inputs before, read its results after");
}

Graph::Graph(Device& device, std::vector<Command> commands, GraphBlocks blocks, std::shared_ptr<Replays> replays)
    : device_(device),
      recording_(new Recording{std::move(commands), nullptr}),
      blocks_(std::move(blocks)),
      replays_(std::move(replays)) {}

Graph::~Graph() {
  device_.stream().push_always(
      "graph", recording_.release(), +[](Device& device, Recording* const& r) {
        if (r->executable) device.runtime().release_graph(device, r->executable);
        delete r;
      });
  device_.pool().release(blocks_);
}

void Graph::replay() {
  check_not_recording(device_, "replay");
  replays_->count++;
  replays_->last = device_.changes().tick();
  device_.stream().push(
      "graph", recording_.get(), +[](Device& device, Recording* const& r) { run(device, *r); });
}

void Graph::run(Device& device, Recording& r) {
  const Runtime& runtime = device.runtime();
  if (!runtime.capture) {
    for (const Command& command : r.commands) device.stream().run_recorded(command);
    return;
  }
  if (!r.executable) r.executable = record(device, r);
  runtime.replay(device, r.executable);
}

// What fails leaves neither an executable nor a capture that goes on: the next replay tries again.
void* Graph::record(Device& device, const Recording& r) {
  const Runtime& runtime = device.runtime();
  runtime.begin_capture(device);
  try {
    for (const Command& command : r.commands) device.stream().run_recorded(command);
  } catch (...) {
    runtime.abandon_capture(device);
    throw;
  }
  return runtime.capture(device);
}

bool Graph::has_tensors() {
  const Pool& pool = device_.pool();
  if (has_tensors_ && looked_at_ != pool.given_up()) has_tensors_ = pool.has_tensors(blocks_);
  looked_at_ = pool.given_up();
  return has_tensors_;
}

}  // namespace bnb
