// DPO: a model learns from pairs of answers which of two is better. A row of the data has prompt, chosen and rejected.
// node build/examples/dpo.js MODEL PAIRS.jsonl OUTPUT [STEPS]
import { AutoModelForCausalLM, BitsAndBytesConfig, getPeftModel, LoraConfig, train } from "bitsandbytes-node";

const [name = "HuggingFaceTB/SmolLM2-135M-Instruct", data = "pairs.jsonl", output = "dpo", steps] =
  process.argv.slice(2);

const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
const base = await AutoModelForCausalLM.fromPretrained(name, { quantizationConfig });
if (!base.tokenizer) throw new Error(`${name} has no tokenizer`);
const maxLength = Math.min(1024, base.config.maxPositionEmbeddings);
const { samples } = await train.loadPreferences(data, { tokenizer: base.tokenizer, maxLength });

// The reference is the same model with its adapters off: it takes no memory of its own.
const model = getPeftModel(base, new LoraConfig({ r: 16, loraAlpha: 32, targetModules: "all-linear" }));
const trainer = new train.DPOTrainer({
  model,
  trainDataset: samples,
  beta: 0.1,
  args: {
    outputDir: output,
    perDeviceTrainBatchSize: 2,
    gradientAccumulationSteps: 4,
    learningRate: 5e-5,
    optim: "adamw_8bit",
    gradientCheckpointing: true,
    loggingSteps: 1,
    ...(steps === undefined ? { numTrainEpochs: 1 } : { maxSteps: Number(steps) }),
  },
});
trainer.on("log", ({ step, loss, rewardMargin = 0, rewardAccuracy = 0 }) => {
  const preferred = `${Math.round(100 * rewardAccuracy)} % of the better answers preferred`;
  console.log(`step ${step}: loss ${loss?.toFixed(4)}, margin ${rewardMargin.toFixed(4)}, ${preferred}`);
});
await trainer.train();
await model.savePretrained(output);
