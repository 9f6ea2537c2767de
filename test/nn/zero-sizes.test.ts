// Layers with no inputs, no outputs or no rows: forward, backward, on every device.
import { describe, expect, it } from "vitest";
import type { DType, Tensor } from "../../src/index.js";
import { backward, full, nn, ones, setDefaultDevice, tidy, zeros } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";

type Make = (inputs: number, outputs: number, dtype: DType) => nn.Module & { forward(x: Tensor): Tensor };

const linear: Record<string, Make> = {
  Linear: (i, o, dtype) => new nn.Linear(i, o, { dtype }),
  LinearNF4: (i, o, dtype) => new nn.LinearNF4(i, o, { dtype }),
  LinearFP4: (i, o, dtype) => new nn.LinearFP4(i, o, { dtype, compressStatistics: true }),
  Linear4bit: (i, o, dtype) => new nn.Linear4bit(i, o, { dtype, computeDtype: "float32" }),
  Linear8bitLt: (i, o, dtype) => new nn.Linear8bitLt(i, o, { dtype, threshold: 6 }),
  "Linear8bitLt without its weight": (i, o, dtype) => new nn.Linear8bitLt(i, o, { dtype, hasFp16Weights: false }),
};
const normalized: Record<string, Make> = {
  RMSNorm: (i, _, dtype) => new nn.RMSNorm(i, { dtype }),
  LayerNorm: (i, _, dtype) => new nn.LayerNorm(i, { dtype }),
  Dropout: () => new nn.Dropout(0.5),
  ReLU: () => new nn.ReLU(),
  SiLU: () => new nn.SiLU(),
  Tanh: () => new nn.Tanh(),
  Sigmoid: () => new nn.Sigmoid(),
  GELU: () => new nn.GELU(),
  Softmax: () => new nn.Softmax(),
  Flatten: () => new nn.Flatten(-1),
};
const embeddings: Record<string, Make> = {
  Embedding: (i, o, dtype) => new nn.Embedding(i, o, { dtype, scaleGradByFreq: true, maxNorm: 1 }),
  StableEmbedding: (i, o, dtype) => new nn.StableEmbedding(i, o, { dtype }),
  EmbeddingNF4: (i, o) => new nn.EmbeddingNF4(i, o),
  EmbeddingFP4: (i, o) => new nn.EmbeddingFP4(i, o),
  Embedding4bit: (i, o) => new nn.Embedding4bit(i, o),
  Embedding8bit: (i, o) => new nn.Embedding8bit(i, o),
};

// Freed memory that is handed out again must not pass for zeros.
function dirty(): void {
  const held = [64, 128, 256, 512, 1024].flatMap((bytes) => [1, 2, 3].map(() => full([bytes / 4], NaN)));
  for (const t of held) t.dispose();
}

function expectFinite(t: Tensor, what: string): void {
  expect(
    [...t.floatsSync()].filter((v) => !Number.isFinite(v)),
    what,
  ).toEqual([]);
}

function checkLayer(make: Make, x: Tensor, width: number, inputs: number, outputs: number, dtype: DType): void {
  dirty();
  const layer = make(inputs, outputs, dtype);
  const y = layer.forward(x);
  expect(y.shape).toEqual([...x.shape.slice(0, x.dtype === "int32" ? undefined : -1), width]);
  expectFinite(y, "output");
  if (y.requiresGrad) {
    backward(y, ones(y.shape, { dtype: y.dtype }));
    for (const leaf of [x, ...layer.parameters()]) {
      const gradient = leaf.grad;
      if (!gradient) continue;
      expect(gradient.shape).toEqual(leaf.shape);
      expectFinite(gradient, "gradient");
      if (y.size === 0) expect([...gradient.floatsSync()].every((v) => v === 0)).toBe(true);
    }
  }
  layer.dispose();
}

describe.each(testDevices())("layers of size 0 on %s", (device) => {
  const each = (run: (inputs: number, outputs: number, rows: number, dtype: DType) => void) => {
    const dtypes: DType[] = ["float32", "float16", "bfloat16"];
    setDefaultDevice(device);
    try {
      for (const inputs of [0, 16])
        for (const outputs of [0, 64])
          for (const rows of [0, 1, 3]) for (const dtype of dtypes) tidy(() => run(inputs, outputs, rows, dtype));
    } finally {
      setDefaultDevice(process.env["BNB_TEST_DEVICE"] ?? "cpu");
    }
  };

  it.each(Object.entries(linear))("%s", (_, make) => {
    each((inputs, outputs, rows, dtype) =>
      checkLayer(make, ones([2, rows, inputs], { dtype, requiresGrad: true }), outputs, inputs, outputs, dtype),
    );
  });

  it.each(Object.entries(normalized))("%s", (_, make) => {
    each((inputs, outputs, rows, dtype) =>
      checkLayer(make, ones([2, rows, inputs], { dtype, requiresGrad: true }), inputs, inputs, outputs, dtype),
    );
  });

  it.each(Object.entries(embeddings))("%s", (_, make) => {
    each((inputs, outputs, rows, dtype) => {
      const ids = zeros([2, inputs === 0 ? 0 : rows], { dtype: "int32" });
      checkLayer(make, ids, outputs, inputs, outputs, dtype);
    });
  });
});
