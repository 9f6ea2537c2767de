// What stands around a draw, by its definition in float64.

/** Penalties, then biases, then the mask. */
export function adjust(
  logits: readonly number[],
  options: {
    generated?: ReadonlyMap<number, number>;
    prompt?: ReadonlySet<number>;
    repetition?: number;
    presence?: number;
    frequency?: number;
    bias?: readonly (readonly [id: number, value: number])[];
    allowed?: (id: number) => boolean;
  },
): number[] {
  const { generated = new Map(), prompt = new Set(), repetition = 1, presence = 0, frequency = 0 } = options;
  return logits.map((logit, id) => {
    const times = generated.get(id) ?? 0;
    let x = logit;
    if (times > 0 || prompt.has(id)) x = x > 0 ? x / repetition : x * repetition;
    if (times > 0) x -= presence + frequency * times;
    for (const [other, value] of options.bias ?? []) if (other === id) x += value;
    return (options.allowed?.(id) ?? true) ? x : -Infinity;
  });
}

export function logSoftmax(logits: readonly number[]): number[] {
  const largest = Math.max(...logits);
  const sum = logits.reduce((total, x) => total + Math.exp(x - largest), 0);
  return logits.map((x) => x - largest - Math.log(sum));
}
