"""Python's bitsandbytes on the same card: 4-bit products, quantizing, LLM.int8() and AdamW8bit, timed with events.

bitsandbytes_baseline.py [--quick]   {"results": [...]} as JSON on the last line, or {"missing": ...}
Calls shorter than 50 us are also timed as a graph of many, where they can be recorded ("timing": "graph"): Python cannot
queue them as fast as the GPU does them, and a user of torch.compile or CUDA graphs does not wait for it either.
"""

import json
import sys

try:
    import bitsandbytes as bnb
    import bitsandbytes.functional as F
    import torch
except Exception as error:  # noqa: BLE001
    print(json.dumps({"missing": f"bitsandbytes ({type(error).__name__}: {error})"}))
    sys.exit(0)

from timing import COLD_BYTES, QUICK, entry, guarded, measure, random

IMPL = f"bitsandbytes {bnb.__version__}"
GRAPHED = 64


def recorded(work):
    """The same calls, many at a time, as one graph; None where they wait for the GPU."""
    graph = torch.cuda.CUDAGraph()
    try:
        for i in range(3):
            work(i)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for i in range(GRAPHED):
                work(i)
    except Exception:  # noqa: BLE001
        torch.cuda.synchronize()
        return None
    return graph


def both(group, op, case, work, required, flops, record=True):
    timing = measure(work)
    yield entry(group, op, IMPL, case, "cold", timing, required, flops)
    graph = recorded(work) if record and timing["us"]["median"] < 50 else None
    if graph is not None:
        timing = measure(lambda _: graph.replay())
        timing["us"] = {key: value / GRAPHED for key, value in timing["us"].items()}
        yield entry(group, op, IMPL, case, "cold", {**timing, "timing": "graph"}, required, flops)


def copies(nbytes):
    return max(2, -int(-COLD_BYTES // nbytes))


def linear4bit():
    shapes = [(4096, 4096), (14336, 4096), (28672, 8192)]
    for n, k in shapes:
        nbytes = n * k / 2 + n * k / 16
        weights = [F.quantize_4bit(random(n, k, std=0.05), quant_type="nf4") for _ in range(copies(nbytes))]
        prefill = [512, 2048] if QUICK and n * k < 10**8 else [] if QUICK else [128, 512, 2048, 8192]
        for m in [1, 8, 64, *prefill] if QUICK else [1, 2, 4, 8, 16, 32, 64, *prefill]:
            x = random(m, k)

            def work(i):
                packed, state = weights[i % len(weights)]
                return bnb.matmul_4bit(x, packed.t(), state)

            case = {"n": n, "k": k, "m": m, "dtype": "bfloat16", "quantType": "nf4", "blocksize": 64}
            flops = 2 * m * n * k
            yield from both(1 if m <= 64 else 2, "linear4bit", case, work, nbytes + 2 * m * (n + k), flops)


def quantizing():
    for size in [2**20, 14336 * 4096]:
        required = size * (2 + 0.5 + 4 / 64)
        inputs = [random(size) for _ in range(copies(required))]
        packed = [F.quantize_4bit(x, quant_type="nf4", blocksize=64) for x in inputs]
        case = {"size": size, "blocksize": 64, "quantType": "nf4", "dtype": "bfloat16"}

        def quantize(i):
            return F.quantize_4bit(inputs[i % len(inputs)], quant_type="nf4", blocksize=64)

        def dequantize(i):
            return F.dequantize_4bit(*packed[i % len(packed)])

        yield from both(3, "quantize4bit", case, quantize, required, 0)
        yield from both(3, "dequantize4bit", case, dequantize, required, 0)
    size = 2**24
    required = size * (5 + 4 / 256)
    inputs = [random(size, dtype=torch.float32) for _ in range(copies(required))]
    states = [F.quantize_blockwise(x, blocksize=256) for x in inputs]
    case = {"size": size, "blocksize": 256, "dtype": "float32"}
    yield from both(
        3, "quantizeBlockwise", case, lambda i: F.quantize_blockwise(inputs[i % len(inputs)], blocksize=256), required, 0
    )
    yield from both(
        3, "dequantizeBlockwise", case, lambda i: F.dequantize_blockwise(*states[i % len(states)]), required, 0
    )


def int8():
    n, k = 4096, 4096
    layers = []
    for _ in range(copies(n * k)):
        layer = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=6.0)
        layers.append(layer.to(torch.float16).cuda().eval())
    for outliers in [0, 6]:
        for m in [1, 128, 2048]:
            x = random(m, k, std=0.5).half()
            for i in range(outliers):
                x[:, i * k // outliers] *= 80

            def work(i):
                with torch.no_grad():
                    return layers[i % len(layers)](x)

            case = {"n": n, "k": k, "m": m, "outliers": outliers, "dtype": "float16"}
            # It waits for the GPU to find the outliers.
            yield from both(4, "matmul8bit", case, work, n * k + 4 * n + 2 * m * (n + k), 2 * m * n * k, record=False)


def adamw8bit():
    sizes = [2**20, 14336 * 4096] if QUICK else [2**20, 2**24, 14336 * 4096, 128256 * 4096, 1_235_814_400]
    for dtype in (torch.bfloat16, torch.float32):
        for size in sizes:
            p = torch.nn.Parameter(random(size, dtype=dtype, std=0.1))
            p.grad = random(size, dtype=dtype, std=0.01)
            optimizer = bnb.optim.AdamW8bit([p], lr=1e-3)
            timing = measure(lambda _: optimizer.step())
            required = size * (3 * p.element_size() + 4 * (1 + 4 / 256))
            case = {"set": "single", "tensors": 1, "parameters": size, "dtype": str(dtype).removeprefix("torch.")}
            cache = "cold" if required > 200e6 else "warm"
            yield entry(5, "AdamW8bit", IMPL, case, cache, timing, required, 0)
            del p, optimizer


torch.manual_seed(0)
rows = [row for part in (linear4bit, quantizing, int8, adamw8bit) for row in guarded(part())]
print(json.dumps({"results": rows}))
