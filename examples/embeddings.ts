// Search by meaning: vectors of texts, and which of them are nearest to a question.
// node build/examples/embeddings.js [MODEL] [QUESTION]
import { AutoModel, matmul, tidy } from "bitsandbytes-node";

const [name = "sentence-transformers/all-MiniLM-L6-v2", question = "How do I save memory?"] = process.argv.slice(2);
const texts = [
  "Eight-bit optimizers keep their states in a quarter of the bytes.",
  "A cat sleeps on the warm windowsill.",
  "Weights of four bits need an eighth of the room of float32.",
  "The train to the coast leaves at noon.",
  "Gradient checkpointing computes activations twice instead of keeping them.",
];

const encoder = await AutoModel.fromPretrained(name);
const documents = await encoder.embed(texts, { normalize: true }); // [texts, hidden]
const query = await encoder.embed(question, { normalize: true }); // [1, hidden]
const cosines = await tidy(() => matmul(query, documents, { transposeB: true })).data();

const ranked = texts.map((text, i) => ({ text, cosine: Number(cosines[i]) })).sort((a, b) => b.cosine - a.cosine);
for (const { text, cosine } of ranked) console.log(`${cosine.toFixed(3)}  ${text}`);
