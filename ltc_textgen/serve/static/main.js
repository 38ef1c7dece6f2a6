// The page: what the user does, and what follows.

import * as api from "./api.js";
import { chart, counted } from "./charts.js";
import { Chunks } from "./chunks.js";
import { scale, tauOf } from "./colours.js";
import * as compare from "./compare.js";
import * as controls from "./controls.js";
import { bytes, byId, element, fill, number } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { History } from "./history.js";
import * as link from "./link.js";
import * as states from "./state_panel.js";
import { Text } from "./text.js";
import * as panel from "./token_panel.js";

const text = new Text(byId("text")), versions = new History();
const fields = link.read();
const neuronName = (row) => { const count = model().ltc.neurons; return `L${Math.floor(row / count)}N${row % count}`; };
const map = new HeatMap(byId("map"), byId("cell"), neuronName);
let all = [], running = null, unsaved = false, chosen = null, lastSeed = "";

const model = () => all.find((one) => one.id === byId("model").value);
const say = (message, bad = false) => { byId("status").textContent = message; byId("status").classList.toggle("error", bad); };

/** Run something that asks the server; an error is said in the status line. */
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return null;
    if (error.status === 401) byId("key-form").hidden = false;
    say(error.message, true);
    return null;
  }
}

/** The request that continues a text. */
function request(prompt) {
  const neuron = byId("neuron").value, ltc = {};
  if (states.before) ltc.state = states.before.id;
  if (controls.live()) ltc.tau = { neurons: /^L\d+N\d+$/.test(neuron) ? [neuron] : [], frames_hz: 10 };
  return { model: byId("model").value, prompt, ...controls.options(), ltc };
}

/** JSON of a request with its seed, which may be larger than a JavaScript number holds exactly. */
function withSeed(document, seed) {
  return seed === "" ? document : { ...document, seed: JSON.rawJSON ? JSON.rawJSON(BigInt(seed).toString()) : Number(seed) };
}

async function write(label = "written") {
  if (running || !controls.valid(byId("sampling"))) return;
  const prompt = text.value, chunks = new Chunks(), start = performance.now();
  versions.add(prompt, saved(), "typed");
  running = new AbortController();
  const seed = controls.seed() || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  byId("go").disabled = true;
  byId("stop").disabled = false;
  byId("text").setAttribute("aria-busy", "true");
  say("Writing.");
  let count = 0, first = 0, usage = null, reason = null;
  const held = [];
  const show = (tokens) => (controls.whole() ? held.push(...tokens) : text.append(tokens));
  const asked = { ...withSeed(request(prompt), seed), stream_options: { include_usage: true, continuous_usage_stats: true } };
  await attempt(async () => {
    for await (const event of api.stream(asked, running.signal)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      if (!choice) continue;
      first ||= performance.now() - start;
      reason = choice.finish_reason ?? reason;
      const tokens = chunks.push(choice, reason !== null);
      show(tokens);
      const frame = choice.ltc?.tau?.frame;
      if (frame) map.add(bytes(frame), choice.text.slice(-1));
      count = usage?.completion_tokens ?? count;
      const seconds = (performance.now() - start - first) / 1000;
      byId("facts").textContent = `${number(count)} tokens, ${number(count / Math.max(seconds, 1e-3))} tokens/s, first after ${number(first)} ms`;
    }
  });
  text.append(held);
  text.append(chunks.push({ text: "", logprobs: { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] } }, true));
  text.flush();
  map.sort();
  map.draw();
  byId("text").setAttribute("aria-busy", "false");
  byId("go").disabled = false;
  byId("stop").disabled = true;
  const stopped = running.signal.aborted;
  running = null;
  versions.add(text.value, saved(), `${label}, seed ${seed}`);
  drawVersions();
  if (reason || stopped) say(`Done: ${number(count)} tokens, ${stopped ? "stopped" : reason}, seed ${seed}.`);
  lastSeed = seed;
  unsaved = true;
}

/** The text as tokens, to come back to; what lies between written tokens has no numbers. */
function saved() {
  text.flush();
  return [...byId("text").childNodes].map((node) => ({ text: node.textContent, facts: node.nodeType === Node.ELEMENT_NODE ? text.of(node) ?? {} : {} }));
}

function restore(node) {
  if (!node) return;
  text.set(node.text, node.tokens);
  drawVersions();
  recolour();
}

function drawVersions() {
  const items = versions.nodes.map((node, number_) => element("li", {}, element("button", { type: "button", ariaCurrent: number_ === versions.current ? "true" : "false",
    onclick: () => restore(versions.go(number_)) }, `${number_ === versions.current ? "● " : ""}${node.label}: …${node.text.slice(-30)}`)));
  fill(byId("versions"), ...items.slice(-200));
  byId("undo").disabled = versions.nodes[versions.current].parent === null;
  byId("redo").disabled = !versions.nodes[versions.current].children.length;
}

/** Continue from an alternative of a token. */
async function branch(span, token) {
  if (running) return;
  versions.add(text.value, saved(), "before a choice");
  text.cut(span);
  text.append([{ text: token, facts: {} }]);
  text.flush();
  await write(`with ${JSON.stringify(token)}`);
}

function point(span) {
  chosen?.classList.remove("chosen");
  chosen = span;
  if (!span) return;
  span.classList.add("chosen");
  panel.show(text.of(span), (token) => branch(span, token));
}

/** Colours by the chosen view, and what they mean. */
function recolour() {
  const view = byId("colour").value, legend = byId("legend");
  legend.hidden = view === "none";
  if (view === "none") return text.colour(null);
  const of = reader(view), { low, high, place } = scale(text.tokens().map(([, facts]) => of(facts)));
  const unit = view === "surprise" ? "bits" : view === "state" ? "" : "tokens, on a logarithmic scale";
  const shown = view === "surprise" || view === "state" ? (value) => value : (value) => 2 ** value;
  legend.textContent = Number.isFinite(low) ? `Dark is ${number(shown(low))}, bright ${number(shown(high))} ${unit}.` : "No written token has this number: trace the text.";
  return text.colour((facts) => { const value = of(facts); return Number.isNaN(value) ? null : place(value); });
}

function reader(view) {
  const neuron = byId("neuron").value;
  if (view === "surprise") return (facts) => (facts.logprob === undefined || facts.logprob === null ? NaN : -facts.logprob / Math.LN2);
  if (view === "neuron") return (facts) => Math.log2(tauOf(facts.tau?.[neuron] ?? 0));
  if (view === "state") return (facts) => facts.states?.[neuron] ?? NaN;
  return (facts) => Math.log2(tauOf(facts.tau?.median?.[Number(view)] ?? 0));
}

function colours() {
  const layers = Array.from({ length: model()?.ltc.layers ?? 0 }, (_, layer) => [String(layer), `median tau of layer ${layer}`]);
  const views = [["none", "nothing"], ["surprise", "surprise"], ["neuron", "tau of the neuron"], ["state", "state of the neuron"], ...layers];
  fill(byId("colour"), ...views.map(([value, label]) => element("option", { value }, label)));
}

/** Read the text again and see every neuron at every token of it. */
async function trace() {
  const whole = text.value.slice(-6000);
  if (!whole) return say("There is no text to trace.", true);
  say("Tracing.");
  const answer = await attempt(() => api.trace({ model: byId("model").value, text: whole, ...(states.before ? { state: states.before.id } : {}) }));
  if (!answer) return;
  const [tokens, width] = answer.shape, codes = bytes(answer.tau), halves = new Uint16Array(bytes(answer.state).buffer);
  const name = byId("neuron").value, place = Math.max(0, answer.neurons.indexOf(name)), shownName = answer.neurons[place];
  const ends = [...answer.text_offset.slice(1), whole.length];
  const characters = [...whole];  // offsets count characters, not UTF-16 units
  const pieces = answer.text_offset.map((offset, index) => characters.slice(offset, index + 1 < tokens ? ends[index] : undefined).join(""));
  const columns = Array.from({ length: tokens }, (_, index) => codes.subarray(index * width, (index + 1) * width));
  const { layers, neurons } = model().ltc;
  const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
  const parts = pieces.map((piece, index) => ({ text: piece, facts: { ...(answer.logprob[index] === null ? {} : { logprob: answer.logprob[index] }),
    tau: { [shownName]: columns[index][place], median: Array.from({ length: layers }, (_, layer) => median(columns[index].subarray(layer * neurons, (layer + 1) * neurons))) },
    states: { [shownName]: half(halves[index * width + place]) } } }));
  const rest = text.value.slice(0, text.value.length - whole.length);
  text.set("", [...(rest ? [{ text: rest, facts: {} }] : []), ...parts]);
  map.set(columns, pieces);
  const x = parts.map((_, index) => index);
  chart(byId("curve"), `${shownName} over the text`, { x, label: "token", curves: [{ name: "log2 tau", y: columns.map((column) => finite(Math.log2(tauOf(column[place])))) },
    { name: "state", y: parts.map((part) => part.facts.states[shownName]) }] });
  const lives = Array.from({ length: layers }, (_, layer) => Array.from({ length: neurons }, (_, index) => Math.LN2 * tauOf(median(columns.map((column) => column[layer * neurons + index])))));
  const histogram = counted(lives);
  if (histogram) chart(byId("half-lives"), "Half-lives: neurons by ln 2 times their median tau", { ...histogram, label: "tokens", bars: true, logX: true });
  recolour();
  return say(`Traced ${number(tokens)} tokens; mean surprise ${number(mean(answer.logprob) / -Math.LN2)} bits.`);
}

const finite = (value) => (Number.isFinite(value) ? value : null);
const mean = (values) => { const known = values.filter((value) => value !== null); return known.reduce((sum, value) => sum + value, 0) / Math.max(1, known.length); };

/** A float16 as a number. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, part = bits & 1023;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -14 * (part / 1024));
}

async function saveState() {
  const answer = await attempt(() => api.complete({ model: byId("model").value, prompt: text.value, max_tokens: 0,
    ltc: { return_state: "id", ...(states.before ? { state: states.before.id } : {}) } }));
  if (!answer) return;
  const id = answer.choices[0].ltc.state;
  states.add(await api.state(id), text.value.slice(-20).trim() || id.slice(0, 10));
  say("The state was saved.");
}

async function loadState(event) {
  const [file] = event.target.files;
  if (!file) return;
  const state = await attempt(() => api.upload(file));
  if (!state) return;
  states.add(state, file.name.replace(/\.[^.]*$/, ""));
  say("The state was loaded.");
}

function asCurl() {
  const document = { ...request(text.value), ...(controls.seed() === "" ? {} : { seed: Number(controls.seed()) }), ltc: undefined };
  const body = JSON.stringify(document).replaceAll("'", "'\\''");
  return `curl ${location.origin}/v1/completions -H 'Content-Type: application/json' -d '${body}'`;
}

async function copy(content, what) {
  try {
    await navigator.clipboard.writeText(content);
    say(`${what} was copied.`);
  } catch {
    say(content);
  }
}

function listen() {
  const on = (id, work, event = "click") => byId(id).addEventListener(event, work);
  on("go", () => write());
  on("stop", () => running?.abort());
  on("undo", () => restore(versions.undo()));
  on("redo", () => restore(versions.redo()));
  on("clear", () => { versions.add(text.value, saved(), "typed"); text.set(""); map.clear(); versions.add("", null, "cleared"); drawVersions(); });
  on("trace", trace);
  on("save", saveState);
  on("load", loadState, "change");
  on("compare", () => attempt(async () => say(await compare.write(withSeed({ ...request(text.value), logprobs: null, ltc: states.before ? { state: states.before.id } : {} }, controls.seed() || "1")))));
  on("link", () => copy(link.write({ model: byId("model").value, text: versions.nodes[versions.nodes[versions.current].parent ?? 0].text || text.value,
    ...controls.values(), seed: controls.seed() || lastSeed }), "The link"));
  on("curl", () => copy(asCurl(), "The command"));
  on("colour", recolour, "change");
  on("scale", () => map.show(byId("scale").value === "change"), "change");
  on("neuron", recolour, "change");
  on("model", () => { colours(); map.clear(); }, "change");
  on("key-form", (event) => event.preventDefault(), "submit");
  on("key", () => { api.useKey(byId("key").value); start(); }, "change");
  byId("text").addEventListener("pointerover", (event) => { const span = text.at(event.target); if (span) point(span); });
  byId("text").addEventListener("input", () => { unsaved = true; });
  document.addEventListener("selectionchange", () => {
    const { anchorNode } = getSelection();
    if (anchorNode && byId("text").contains(anchorNode)) { const span = text.at(anchorNode); if (span) point(span); }
  });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey || event.shiftKey) && event.key === "Enter") { event.preventDefault(); write(); }
    if (event.key === "Escape" && running) { event.preventDefault(); running.abort(); }
  });
  addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  map.onpick = (row) => { byId("neuron").value = neuronName(row); recolour(); };
}

async function start() {
  const found = await attempt(api.models);
  if (!found) return;
  all = found;
  fill(byId("model"), ...all.map((one) => element("option", { value: one.id, selected: one.id === fields.model }, one.id)));
  colours();
  say(`Ready: ${model().id}, engine ${model().ltc.engine}, ${model().ltc.layers} layers of ${model().ltc.neurons} neurons.`);
}

controls.build(byId("sampling"), fields);
compare.build(byId("clamp"));
text.set(fields.text ?? "");
listen();
drawVersions();
start();
