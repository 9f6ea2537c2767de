"""torch's side of the GPU benchmarks, timed with events in the same run: ceilings, dense products, fused AdamW.

torch_baseline.py ceilings   {"copyGBs", "gemmBf16TFLOPs", "versions"} as JSON on the last line
torch_baseline.py all        {"results": [...]}, each in the form of bench/gpu/report.ts
--quick takes a few shapes and less time for each. --tiny takes small shapes, and the CPU where there is no GPU: it
shows only that the program runs.
"""

import json
import sys
import time

try:
    import torch
except ImportError:
    print(json.dumps({"missing": "torch"}))
    sys.exit(0)

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


def ceilings():
    size = 1 << (12 if TINY else 30)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = measure(lambda _: target.copy_(source))
    n = 64 if TINY else 8192
    a, b = random(n, n), random(n, n)
    out = torch.empty_like(a)
    gemm = measure(lambda _: torch.matmul(a, b, out=out))
    return {
        "copyGBs": 2 * size / copy["us"]["median"] / 1e3,
        "gemmBf16TFLOPs": 2 * n**3 / gemm["us"]["median"] / 1e6,
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    }


def entry(group, op, case, cache, timing, required, flops):
    us = timing["us"]["median"]
    return {
        "group": group, "op": op, "impl": f"torch {torch.__version__}", "timing": "events", "cache": cache,
        "case": case, **timing, "requiredBytes": required, "GBs": required / us / 1e3, "TFLOPs": flops / us / 1e6,
    }  # fmt: skip


def linears():
    shapes = [(64, 64)] if TINY else [(4096, 4096), (14336, 4096)] if QUICK else [
        (1024, 4096), (4096, 4096), (14336, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (28672, 8192),
    ]  # fmt: skip
    for n, k in shapes:
        nbytes = 2 * n * k
        weights = [random(n, k, std=0.05) for _ in range(2 if TINY else max(2, -int(-COLD_BYTES // nbytes)))]
        for m in [1] if TINY else [1, 64, 512, 2048] if QUICK else [1, 8, 32, 64, 128, 512, 2048, 8192]:
            x = random(m, k)
            timing = measure(lambda i: torch.nn.functional.linear(x, weights[i % len(weights)]))
            case = {"n": n, "k": k, "m": m, "dtype": "bfloat16"}
            yield entry(1 if m <= 64 else 2, "linear", case, "cold", timing, nbytes + 2 * m * (n + k), 2 * m * n * k)


def adamw():
    for dtype in (torch.bfloat16, torch.float32):
        for size in [8192] if TINY else [14336 * 4096] if QUICK else [2**20, 2**24, 14336 * 4096, 128256 * 4096, 1_235_814_400]:
            p = torch.nn.Parameter(random(size, dtype=dtype, std=0.1))
            p.grad = random(size, dtype=dtype, std=0.01)
            optimizer = torch.optim.AdamW([p], lr=1e-3, fused=True)
            timing = measure(lambda _: optimizer.step())
            required = 7 * size * p.element_size()
            case = {"set": "single", "tensors": 1, "parameters": size, "dtype": str(dtype).removeprefix("torch.")}
            cache = "cold" if required > 200e6 else "warm"
            yield entry(5, "AdamW fused", case, cache, timing, required, 0)
            del p, optimizer


def guarded(rows):
    """All results of a generator; one that fails ends it and is named."""
    results = []
    try:
        for row in rows:
            results.append(row)
    except Exception as error:  # noqa: BLE001
        results.append({"op": rows.__name__, "error": f"{type(error).__name__}: {error}"})
    return results


torch.manual_seed(0)
if sys.argv[1:2] == ["ceilings"]:
    print(json.dumps(ceilings()))
else:
    print(json.dumps({"results": guarded(linears()) + guarded(adamw())}))
