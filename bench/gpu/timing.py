"""How the Python side of the GPU benchmarks times: bursts of calls between two events. bench/gpu/report.ts has the form of
a result. --quick takes less time for each case; --tiny shows only that a program runs."""

import sys
import time

import torch

TINY = "--tiny" in sys.argv
QUICK = "--quick" in sys.argv
PATIENCE = 0.3 if QUICK else 1.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLD_BYTES = 192e6


def spread(values):
    values = sorted(values)

    def at(q):
        return values[min(len(values) - 1, round(q * (len(values) - 1)))]

    return {"median": at(0.5), "p10": at(0.1), "p90": at(0.9)}


def timed(work, launches):
    """Microseconds of `launches` calls of work(i)."""
    if DEVICE == "cpu":
        start = time.perf_counter()
        for i in range(launches):
            work(i)
        return 1e6 * (time.perf_counter() - start)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for i in range(launches):
        work(i)
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def measure(work, bursts=50, burst_us=5000):
    """Microseconds a call: bursts of at least 20 calls between two events, or fewer where one takes long."""
    if TINY:
        return {"us": spread([timed(work, 2) / 2 for _ in range(2)]), "reps": 2, "launches": 2}
    for _ in range(3):
        timed(work, 1)
    one = max(0.1, timed(work, 10) / 10)
    launches = int(max(4 if one > 1000 else 20, min(4096, burst_us / one)))
    samples, began = [], time.perf_counter()
    while len(samples) < 10 or (len(samples) < bursts and time.perf_counter() - began < PATIENCE):
        samples.append(timed(work, launches) / launches)
    return {"us": spread(samples), "reps": len(samples), "launches": launches}


def random(*shape, dtype=torch.bfloat16, std=1.0):
    return (torch.randn(*shape, device=DEVICE, dtype=torch.float32) * std).to(dtype)


def entry(group, op, impl, case, cache, timing, required, flops):
    us = timing["us"]["median"]
    return {
        "group": group, "op": op, "impl": impl, "timing": "events", "cache": cache,
        "case": case, **timing, "requiredBytes": required, "GBs": required / us / 1e3, "TFLOPs": flops / us / 1e6,
    }  # fmt: skip


def guarded(rows):
    """All results of a generator; one that fails ends it and is named."""
    results = []
    try:
        for row in rows:
            results.append(row)
    except Exception as error:  # noqa: BLE001
        results.append({"op": rows.__name__, "error": f"{type(error).__name__}: {error}"})
    return results
