// An exported network in plain JavaScript: tokens, state, text. The caller brings onnxruntime (web or node) as `ort`.
//
//   const files = await load(name => fetch(name).then(...));
//   const network = await Network.open(ort, bytes, about);
//   for await (const {text, tau} of write(network, new Text(files), "It was", {temperature: 0.8})) ...

export const FORMAT = 2;

export class Network {
  // `model`: the bytes of model.onnx or model.int8.onnx; `about`: export.json.
  static async open(ort, model, about, options = {}) {
    if (about.format !== FORMAT) throw new Error(`export.json is of format ${about.format}, this page reads ${FORMAT}`);
    const network = new Network();
    network.ort = ort;
    network.about = about;
    network.session = await ort.InferenceSession.create(model, options);
    return network;
  }

  // The state before the first token of one text.
  initialState() {
    const state = {};
    for (const { name, shape, initial } of this.about.states) {
      const size = shape.reduce((a, b) => a * b, 1);
      const values = typeof initial === "number" ? new Float32Array(size).fill(initial) : Float32Array.from(initial);
      state[name] = new this.ort.Tensor("float32", values, [1, ...shape]);
    }
    return state;
  }

  // Reads one token: logits of the next, the state after it, and the time constants of every layer.
  async step(token, state, elapsed = 1) {
    const feeds = {
      token: new this.ort.Tensor("int64", BigInt64Array.from([BigInt(token)]), [1]),
      elapsed: new this.ort.Tensor("float32", Float32Array.from([elapsed]), [1]),
      ...state,
    };
    const results = await this.session.run(feeds);
    const after = {};
    for (const { name, next } of this.about.states) after[name] = results[next];
    return { logits: results.logits.data, state: after, tau: this.about.time_constants.map((name) => results[name].data) };
  }
}

// The next token. `random` gives numbers in [0, 1); temperature 0 takes the likeliest; topK 0 and topP 1 keep all.
export function choose(logits, { temperature = 0.8, topK = 0, topP = 1, random = Math.random, forbidden = -1 } = {}) {
  const order = Array.from(logits.keys()).filter((id) => id !== forbidden);
  order.sort((a, b) => logits[b] - logits[a] || a - b);
  const largest = logits[order[0]];
  if (!Number.isFinite(largest)) throw new Error("the network's logits are NaN or infinite");
  if (Math.fround(temperature) === 0) return order[0];
  const kept = topK > 0 ? order.filter((id) => logits[id] >= logits[order[Math.min(topK, order.length) - 1]]) : order;
  const weights = kept.map((id) => Math.exp((logits[id] - largest) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let count = kept.length;
  if (topP < 1) {
    let mass = 0;
    for (count = 0; count < kept.length && (count === 0 || mass < topP * total); count++) mass += weights[count];
  }
  let left = random() * weights.slice(0, count).reduce((a, b) => a + b, 0);
  for (let i = 0; i < count - 1; i++) {
    left -= weights[i];
    if (left < 0) return kept[i];
  }
  return kept[count - 1];
}

// Text to ids and back, from tokenizer.json and decoding.json.
export class Text {
  constructor(tokenizer, decoding, kind) {
    this.decoding = decoding;
    this.kind = kind;
    const model = tokenizer.model;
    this.vocabulary = new Map(Object.entries(model.vocab));
    for (const token of tokenizer.added_tokens ?? []) this.vocabulary.set(token.content, token.id);
    this.unknown = this.vocabulary.get(model.unk_token);
    this.prefix = model.continuing_subword_prefix ?? "";
    this.longest = model.max_input_chars_per_word ?? 100;
    this.normalizer = tokenizer.normalizer ?? {};
    this.words = kind === "wordpiece" ? wordsOf(tokenizer) : undefined;
    this.readable = ["char", "byte", "wordpiece", "bert"].includes(kind) && decoding.style !== "window";
  }

  encode(text) {
    if (!this.readable) throw new Error(`this page reads no prompt for a ${this.kind} tokenizer: leave it empty`);
    text = text.toWellFormed ? text.toWellFormed() : text;
    if (this.kind === "byte") return Array.from(new TextEncoder().encode(text));
    if (this.kind === "char") return Array.from(text, (character) => this.vocabulary.get(character) ?? this.unknown);
    const words = this.kind === "bert" ? bertWords(text, this.normalizer) : (text.match(this.words) ?? []).map(byteCharacters);
    return words.flatMap((word) => this.pieces(word));
  }

  // The characters of a text that the tokenizer does not know.
  unknownIn(text) {
    if (this.unknown === undefined || !this.readable || !this.encode(text).includes(this.unknown)) return [];
    return [...new Set(text)].filter((character) => this.encode(character).includes(this.unknown));
  }

  // WordPiece: the longest token that fits, repeatedly; a word that cannot be split is unknown.
  pieces(word) {
    const characters = Array.from(word);
    if (characters.length > this.longest) return [this.unknown];
    const ids = [];
    for (let start = 0; start < characters.length; ) {
      let end = characters.length;
      let id;
      for (; end > start; end--) {
        id = this.vocabulary.get((start ? this.prefix : "") + characters.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return [this.unknown];
      ids.push(id);
      start = end;
    }
    return ids;
  }

  stream() {
    if (this.decoding.style === "bytes") return new ByteStream(this.decoding.pieces);
    if (this.decoding.style === "words") return new WordStream(this.decoding.pieces, this.decoding.prefix);
    throw new Error("this page cannot decode this tokenizer (decoding.json: window)");
  }
}

// A prompt as the package reads it: without byte order marks, with LF for every CR and CRLF.
export function normalized(text) {
  return text.replace(/\ufeff/g, "").replace(/\r\n?/g, "\n");
}

// Words with their leading space, numbers, symbols, line ends and blanks, by the rule in tokenizer.json, whose regular
// expressions write white space and code points in another way than those of JavaScript.
function wordsOf(tokenizer) {
  const rule = tokenizer.pre_tokenizer?.pretokenizers?.[0]?.pattern?.Regex;
  if (rule === undefined) return undefined;
  const blanks = { s: "\\p{White_Space}", S: "\\P{White_Space}" };
  const translated = rule.replace(/\\x\{([0-9A-Fa-f]+)\}/g, "\\u{$1}").replace(/\\([sS])/g, (_, kind) => blanks[kind]);
  return new RegExp(translated, "gu");
}

// GPT-2's printable characters for bytes: those of Latin-1 for themselves, the others counted up from U+0100.
const BYTE_CHARACTERS = (() => {
  const plain = (b) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  let others = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(plain(b) ? b : others++));
})();

function byteCharacters(word) {
  return Array.from(new TextEncoder().encode(word), (byte) => BYTE_CHARACTERS[byte]).join("");
}

// BERT's normalizer and pre-tokenizer: clean, Chinese characters apart, lower case without accents, punctuation apart.
function bertWords(text, { clean_text = true, handle_chinese_chars = true, lowercase = true, strip_accents = null }) {
  if (clean_text) {
    text = text.replace(/[\t\n\r]|\p{White_Space}/gu, " ").replace(/[\0\ufffd\p{Cc}\p{Cf}\p{Cn}\p{Co}]/gu, "");
  }
  if (handle_chinese_chars) {
    text = text.replace(/[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu, " $& ");
  }
  if (strip_accents ?? lowercase) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
  // Letter by letter: a whole word would end in another sigma.
  if (lowercase) text = Array.from(text, (character) => character.toLowerCase()).join("");
  return text.match(/[!-/:-@[-`{-~\p{P}]|[^\p{White_Space}!-/:-@[-`{-~\p{P}]+/gu) ?? [];
}

// Tokens that stand for bytes of UTF-8; a character may be spread over several.
class ByteStream {
  constructor(pieces) {
    this.pieces = pieces;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }
  push(id) {
    const bytes = this.pieces[id].match(/../g) ?? [];
    return this.decoder.decode(Uint8Array.from(bytes, (byte) => parseInt(byte, 16)), { stream: true });
  }
  flush() {
    return this.decoder.decode();
  }
}

// BERT's tokens with the spacing of print; the same rules as detokenize.py.
const ENDINGS = new Set(["s", "t", "m", "d", "ll", "re", "ve"]);
const CLOSING = new Set(".,;:!?)]}%’”…");
const OPENING = new Set("([{$£€#‘“");
const JOINTS = new Set(["-", ",", "."]);

class WordStream {
  constructor(pieces, prefix) {
    Object.assign(this, { pieces, prefix, held: [], glue: true, open: new Set() });
  }
  push(id) {
    const piece = this.pieces[id];
    if (!piece) return "";
    if (piece.startsWith(this.prefix) && piece.length > this.prefix.length) {
      return this.spell() + this.continue(piece.slice(this.prefix.length));
    }
    this.held.push(piece);
    return this.settle();
  }
  flush() {
    return this.release();
  }
  settle() {
    const [first, second, third] = this.held;
    const joint = first === "@" && JOINTS.has(second);
    if (this.held.length === 1 && (first === "@" || first === "'")) return "";
    if (this.held.length === 2 && (joint || (first === "'" && ENDINGS.has(second)))) return "";
    if (this.held.length === 3 && joint && third === "@") {
      this.held = [];
      return this.continue(second, true);
    }
    if (this.held.length > 1) {
      const last = this.held.pop();
      const text = this.release();
      this.held.push(last);
      return text + this.settle();
    }
    return this.release();
  }
  release() {
    const [first, second] = this.held;
    if (this.held.length === 2 && first === "'" && ENDINGS.has(second) && !this.glue) {
      this.held = [];
      return this.continue("'" + second);
    }
    return this.spell();
  }
  spell() {
    const text = this.held.map((piece) => this.write(piece)).join("");
    this.held = [];
    return text;
  }
  continue(text, glue = false) {
    this.glue = glue;
    return text;
  }
  write(piece) {
    if (piece === '"' || piece === "'") {
      const closes = this.open.has(piece);
      closes ? this.open.delete(piece) : this.open.add(piece);
      const space = closes || this.glue ? "" : " ";
      this.glue = !closes;
      return space + piece;
    }
    const space = this.glue || CLOSING.has(piece) ? "" : " ";
    this.glue = OPENING.has(piece);
    return space + piece;
  }
}

// Continues a prompt: {text, tau, count} as it is made. `settings`: those of `choose`, maxTokens, elapsed, ignoreEos.
export async function* write(network, text, prompt, settings = {}) {
  const { maxTokens = 200, elapsed = 1, ignoreEos = false } = settings;
  const eosTokenId = network.about.eos_token_id;
  const ids = prompt ? text.encode(prompt) : [network.about.start_id ?? eosTokenId];
  if (!ids.length) throw new Error("the tokenizer finds no token in the prompt");
  const decoder = text.stream();
  let state = network.initialState();
  let result;
  let shown = "";
  for (const id of ids) {
    result = await network.step(id, state, elapsed);
    state = result.state;
    shown += decoder.push(id);
  }
  const whole = text.stream();
  let held = (ids.map((id) => whole.push(id)).join("") + whole.flush()).slice(shown.length).trim();
  // Without the end of the prompt, if the decoder had held that back.
  const own = (piece) => {
    if (!piece || !held) return piece;
    const kept = held;
    held = "";
    return piece.trimStart().startsWith(kept) ? piece.trimStart().slice(kept.length) : piece;
  };
  let count = 0;
  while (count < maxTokens) {
    const token = choose(result.logits, { ...settings, forbidden: ignoreEos ? eosTokenId : -1 });
    count++;
    if (token === eosTokenId) break;
    yield { text: own(decoder.push(token)), tau: result.tau, count };
    if (count < maxTokens) {
      result = await network.step(token, state, elapsed);
      state = result.state;
    }
  }
  yield { text: own(decoder.flush()), tau: result.tau, count };
}
