// A tokenizer whose tokens are the 256 bytes and three special ones, as the files that transformers reads.

export interface NewTokenizer {
  vocabSize: number;
  bos: number;
  eos: number;
  /** Contents by the names of the files. */
  files: Readonly<Record<string, string>>;
}

const TEXT_END = "<|endoftext|>";
const TURN = "<|im_start|>";
const TURN_END = "<|im_end|>";

/** ChatML. */
const template =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** Tokens 0 to 255 are the bytes of UTF-8; then, unless `isPlain`, the end of a text, and beginning and end of a turn. */
export function newTokenizer({ isPlain = false } = {}): NewTokenizer {
  const vocab = Object.fromEntries(byteCharacters().map((character, byte) => [character, byte]));
  const added = (isPlain ? [] : [TEXT_END, TURN, TURN_END]).map((content, i) => ({
    id: 256 + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: [],
    },
  };
  const tokenizerConfig = {
    clean_up_tokenization_spaces: false,
    tokenizer_class: "PreTrainedTokenizerFast",
    ...(!isPlain && {
      added_tokens_decoder: Object.fromEntries(added.map(({ id, ...token }) => [id, token])),
      bos_token: TEXT_END,
      chat_template: template,
      eos_token: TURN_END,
      pad_token: TEXT_END,
    }),
  };
  const generation = isPlain ? {} : { bos_token_id: 256, eos_token_id: [258, 256], pad_token_id: 256 };
  const text = (json: object): string => `${JSON.stringify(json, null, 2)}\n`;
  return {
    vocabSize: 256 + added.length,
    bos: 256,
    eos: 258,
    files: {
      "generation_config.json": text(generation),
      "tokenizer.json": text(tokenizer),
      "tokenizer_config.json": text(tokenizerConfig),
    },
  };
}

/**
 * The character that stands for each byte in byte-level vocabularies (Radford et al., 2019): itself where it is visible,
 * else the next one from U+0100 on.
 */
function byteCharacters(): string[] {
  const isVisible = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isVisible(byte) ? byte : next++));
}
