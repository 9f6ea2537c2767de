// The thread behind a Tokenizer. Texts come and go in pieces, so that neither side copies a long one at once.
"use strict";
const { parentPort, workerData } = require("node:worker_threads");
const { Template } = require("@huggingface/jinja");
const { Tokenizer } = require("@huggingface/tokenizers");

/** Characters of a piece: a copy of about a millisecond. */
const PIECE = workerData.piece;

/** @type {Map<number, string[]>} Pieces of the texts of calls that are not complete. */
const texts = new Map();
/** @type {Map<string, any>} */
const templates = new Map();
const description = JSON.parse(workerData.tokenizer);
const tokenizer = new Tokenizer(description, JSON.parse(workerData.config));
const joinsPairs = ![undefined, "ByteLevel"].includes(description.post_processor?.type);
const vocabulary = tokenizer.get_vocab(true);

const decoded = (ids, skipSpecialTokens) =>
  tokenizer.decode(Array.from(ids), {
    skip_special_tokens: skipSpecialTokens,
    clean_up_tokenization_spaces: false,
  });

/** What each call does with its text, ids and options. */
const operations = {
  encode(text, _ids, { addSpecialTokens, split }) {
    const ids = (one, other) => tokenizer.encode(one, { text_pair: other, add_special_tokens: addSpecialTokens }).ids;
    if (split === null) return { ids: Int32Array.from(ids(text)) };
    const [first, second] = [text.slice(0, split), text.slice(split)];
    // What only handles bytes has no rule for pairs: they follow each other.
    return { ids: Int32Array.from(joinsPairs ? ids(first, second) : [...ids(first), ...ids(second)]) };
  },
  decode: (_text, ids, { skipSpecialTokens }) => ({ text: decoded(ids, skipSpecialTokens) }),
  decodeEach(_text, ids, { lengths, skips }) {
    let end = 0;
    const value = lengths.map((length, i) => {
      end += length;
      return decoded(ids.subarray(end - length, end), skips[i]);
    });
    return { value };
  },
  render(template, _ids, { variables }) {
    let compiled = templates.get(template);
    if (!compiled) {
      compiled = new Template(template);
      templates.set(template, compiled);
    }
    return { text: compiled.render(variables) };
  },
  /** Bytes of tokens, each alone: a part of a character has no text. */
  bytesEach: (_text, ids) => ({ value: Array.from(ids, bytesOf) }),
  tokenToId: (token) => ({ value: vocabulary.get(token) ?? null }),
  idToToken: (_text, _ids, { id }) => ({ value: tokenizer.id_to_token(id) ?? null }),
};

const decoders = JSON.stringify(description.decoder ?? {});
const isByteLevel = decoders.includes('"ByteLevel"');
const isFallback = /"(ByteFallback|Metaspace)"/.test(decoders);
const added = new Map((description.added_tokens ?? []).map(({ id, content }) => [id, content]));

/** The bytes that characters of byte-level tokens stand for: those that can be seen are themselves, others follow at 256. */
const byteOf = new Map();
for (let byte = 0, others = 0; byte < 256; byte++) {
  const isSeen = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  byteOf.set(String.fromCodePoint(isSeen ? byte : 256 + others++), byte);
}

function bytesOf(id) {
  const token = tokenizer.id_to_token(id);
  if (token == null) return [];
  const plain = (text) => [...Buffer.from(text, "utf8")];
  if (added.has(id)) return plain(added.get(id));
  if (isByteLevel) return [...token].flatMap((character) => byteOf.get(character) ?? plain(character));
  const [, hex] = /^<0x([0-9A-F]{2})>$/.exec(token) ?? [];
  if (isFallback && hex) return [Number.parseInt(hex, 16)];
  return plain(isFallback ? token.replaceAll("\u2581", " ") : decoded([id], false));
}

/** Special tokens that a model writes. */
const written = new Set(["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>", "<tool_call>", "</tool_call>"]);

/** Tokens by their ids, as XGrammar takes them; those that stand for no text are "". */
function vocabularyFor() {
  const special = (description.added_tokens ?? []).filter((token) => token.special && !written.has(token.content));
  const tokens = [];
  for (const [token, id] of vocabulary) tokens[id] = token;
  for (const { id } of special) tokens[id] = "";
  const type = isByteLevel ? "byte_level" : isFallback ? "byte_fallback" : "raw";
  return { tokens: Array.from(tokens, (token) => token ?? ""), type };
}

parentPort.on("message", ({ call, piece, operation, ids, options, port }) => {
  if (port) {
    port.postMessage(vocabularyFor());
    port.close();
    return;
  }
  if (piece !== undefined) {
    const pieces = texts.get(call);
    if (pieces) pieces.push(piece);
    else texts.set(call, [piece]);
    return;
  }
  const text = (texts.get(call) ?? []).join("");
  texts.delete(call);
  try {
    const { text: answer = "", ids: codes, value } = operations[operation](text, ids, options);
    for (let at = 0; at < answer.length; at += PIECE) {
      parentPort.postMessage({ call, piece: answer.slice(at, at + PIECE) });
    }
    parentPort.postMessage({ call, done: true, ids: codes, value }, codes ? [codes.buffer] : []);
  } catch (error) {
    parentPort.postMessage({ call, error: error instanceof Error ? error.message : String(error) });
  }
});
parentPort.postMessage({ call: 0, done: true, value: vocabulary.size });
