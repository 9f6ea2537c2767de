// QLoRA: a chat model learns from a file of conversations, on a base in 4 bits that stays as it is.
// node build/examples/qlora.js MODEL DATA.jsonl OUTPUT [STEPS]
import {
  AutoModelForCausalLM,
  BitsAndBytesConfig,
  getPeftModel,
  LoraConfig,
  prepareModelForKbitTraining,
  train,
} from "bitsandbytes-node";

const [name = "HuggingFaceTB/SmolLM2-135M-Instruct", data = "chat.jsonl", output = "qlora", steps] =
  process.argv.slice(2);

const quantizationConfig = new BitsAndBytesConfig({ loadIn4bit: true, bnb4bitQuantType: "nf4" });
const base = await AutoModelForCausalLM.fromPretrained(name, { quantizationConfig });
if (!base.tokenizer) throw new Error(`${name} has no tokenizer`);

const maxLength = Math.min(1024, base.config.maxPositionEmbeddings);
const { samples, truncated } = await train.loadDataset(data, { tokenizer: base.tokenizer, maxLength });
console.log(`${samples.length} samples, ${truncated} of them cut at ${maxLength} tokens`);

const config = new LoraConfig({ r: 16, loraAlpha: 32, loraDropout: 0.05, targetModules: "all-linear" });
const model = getPeftModel(prepareModelForKbitTraining(base), config);
model.printTrainableParameters();

const trainer = new train.Trainer({
  model: base,
  trainDataset: samples,
  args: {
    outputDir: output,
    perDeviceTrainBatchSize: 4,
    gradientAccumulationSteps: 4,
    learningRate: 2e-4,
    lrSchedulerType: "cosine",
    warmupRatio: 0.03,
    optim: "paged_adamw_8bit",
    gradientCheckpointing: true,
    loggingSteps: 1,
    reportTo: "console",
    resumeFromCheckpoint: true, // a second call goes on where the first one ended
    ...(steps === undefined ? { numTrainEpochs: 3 } : { maxSteps: Number(steps) }),
  },
});
const { loss } = await trainer.train();
await model.savePretrained(output); // as Python's peft does

base.eval();
const question = [{ role: "user", content: "Who are you?" }];
for await (const piece of base.generate(question, { maxNewTokens: 32 })) process.stdout.write(piece);
console.log(`\n${output}: loss ${loss.toFixed(3)}; bnb chat ${name} --4bit --lora ${output}`);
