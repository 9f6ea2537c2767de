// crossEntropy in float64: the mean over the rows that count of log(sum(exp(x))) - x[target].

export function crossEntropyReference(
  logits: ArrayLike<number>,
  targets: ArrayLike<number>,
  classes: number,
  ignoreIndex = -100,
): number {
  let sum = 0;
  let count = 0;
  for (let r = 0; r < targets.length; r++) {
    const target = targets[r]!;
    if (target === ignoreIndex) continue;
    let top = -Infinity;
    for (let c = 0; c < classes; c++) top = Math.max(top, logits[r * classes + c]!);
    let total = 0;
    for (let c = 0; c < classes; c++) total += Math.exp(logits[r * classes + c]! - top);
    sum += top + Math.log(total) - logits[r * classes + target]!;
    count++;
  }
  return sum / count;
}
