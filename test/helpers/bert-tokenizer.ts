// A tokenizer as BERT has, for encoders made of a fixture.
import { writeFileSync } from "node:fs";
import { join } from "node:path";

/** A BERT tokenizer of a few words: [CLS] first [SEP] second [SEP]. */
export function writeBertTokenizer(folder: string): void {
  const words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "the", "cat", "dog", "sits", "runs", "is", "a"];
  const special = (content: string) => ({ id: words.indexOf(content), content, special: true });
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const token = (id: string, type_id = 0) => ({ SpecialToken: { id, type_id } });
  const text = (id: string, type_id = 0) => ({ Sequence: { id, type_id } });
  const specialTokens = ["[CLS]", "[SEP]"].map((id) => [id, { id, ids: [words.indexOf(id)], tokens: [id] }]);
  const json = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: words.slice(0, 4).map((word) => ({ ...special(word), ...flags })),
    normalizer: null,
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single: [token("[CLS]"), text("A"), token("[SEP]")],
      pair: [token("[CLS]"), text("A"), token("[SEP]"), text("B", 1), token("[SEP]", 1)],
      special_tokens: Object.fromEntries(specialTokens),
    },
    decoder: null,
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(words.map((word, id) => [word, id])),
    },
  };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(json));
  writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ tokenizer_class: "BertTokenizer" }));
}
