"""torch's side of the GPU benchmarks, timed with events in the same run: ceilings, dense products, fused AdamW.

torch_baseline.py ceilings   {"copyGBs", "gemmBf16TFLOPs", "versions"} as JSON on the last line
torch_baseline.py all        {"results": [...]}, each in the form of bench/gpu/report.ts
--quick takes a few shapes and less time for each. --tiny takes small shapes, and the CPU where there is no GPU: it
shows only that the program runs.
"""

import json
import sys

try:
    import torch
except ImportError:
    print(json.dumps({"missing": "torch"}))
    sys.exit(0)

from timing import COLD_BYTES, QUICK, TINY, DEVICE, entry, guarded, measure, random

IMPL = f"torch {torch.__version__}"


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
            yield entry(1 if m <= 64 else 2, "linear", IMPL, case, "cold", timing, nbytes + 2 * m * (n + k), 2 * m * n * k)


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
            yield entry(5, "AdamW fused", IMPL, case, cache, timing, required, 0)
            del p, optimizer


torch.manual_seed(0)
if sys.argv[1:2] == ["ceilings"]:
    print(json.dumps(ceilings()))
else:
    print(json.dumps({"results": guarded(linears()) + guarded(adamw())}))
