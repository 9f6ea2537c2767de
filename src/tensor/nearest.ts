// Which known name was probably meant by one that is not known.

/** A name that is not known, with the known one that was probably meant. */
export function withNearest(name: string, known: readonly string[]): string {
  const near = nearest(name, known);
  return near === undefined ? name : `${name} (did you mean ${near}?)`;
}

// What torch, transformers, peft, bitsandbytes and NumPy call it, without underscores: the first that exists is meant.
const aliases: Readonly<Record<string, readonly string[]>> = {
  dim: ["axis", "axes"],
  dims: ["axes", "axis"],
  axis: ["axes"],
  axes: ["axis"],
  keepdim: ["keepDims"],
  learningrate: ["lr"],
  epsilon: ["eps"],
  wd: ["weightDecay"],
  alpha: ["loraAlpha"],
  rank: ["r"],
  dropout: ["loraDropout"],
  targets: ["targetModules"],
  maxtokens: ["maxNewTokens"],
  stop: ["eosTokenId", "stopStrings"],
  stoptokens: ["eosTokenId"],
  doublequant: ["compressStatistics", "nested"],
  usedoublequant: ["compressStatistics", "nested"],
  bnb4bitusedoublequant: ["compressStatistics", "nested"],
  bnb4bitquanttype: ["quantType"],
  bnb4bitcomputedtype: ["computeDtype"],
  bnb4bitquantstorage: ["quantStorage"],
  bits: ["optimBits"],
  iscausal: ["causal"],
  transa: ["transposeA"],
  transb: ["transposeB"],
};

/** The known name that was probably meant: another spelling, another library's word for it, or a typing error. */
export function nearest(given: string, known: readonly string[]): string | undefined {
  const plain = (name: string) => name.replaceAll(/[_-]/g, "").toLowerCase();
  const wanted = plain(given);
  const same = known.find((name) => plain(name) === wanted);
  if (same !== undefined) return same;
  const alias = Object.hasOwn(aliases, wanted) ? aliases[wanted] : undefined;
  const meant = alias?.find((name) => known.includes(name));
  if (meant !== undefined) return meant;
  const allowed = Math.min(2, Math.floor(wanted.length / 3));
  const distances = known.map((name) => editDistance(wanted, plain(name)));
  const best = distances.indexOf(Math.min(...distances));
  return (distances[best] ?? Infinity) <= allowed ? known[best] : undefined;
}

/** How many letters must be inserted, removed or changed. */
function editDistance(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = (above[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(change, (above[j] as number) + 1, (row[j - 1] as number) + 1));
    }
    above = row;
  }
  return above[b.length] as number;
}
