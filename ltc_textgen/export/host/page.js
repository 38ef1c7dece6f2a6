// The page around ltc.js: loads the export beside it, streams text, draws the time constants.
import { Network, Text, normalized, write } from "./ltc.js";

const RUNTIME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
const at = (id) => document.getElementById(id);
const say = (message) => (at("status").textContent = message);
let running = false;
say("loading"); // in place of the advice on how to serve the page

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is missing: serve the directory that ltc export wrote`);
  return new Uint8Array(await answer.arrayBuffer());
}

// A file of the export, checked against its SHA-256; a page that is not served from this machine or by https cannot.
async function checked(name, about) {
  const content = await fetched(name);
  if (!crypto.subtle) return content;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== about.files[name]) throw new Error(`${name} is damaged: its checksum is not that of export.json`);
  return content;
}

const json = (content) => JSON.parse(new TextDecoder().decode(content));

async function load() {
  const ort = await import(RUNTIME + "ort.wasm.bundle.min.mjs").catch(() => {
    throw new Error("onnxruntime-web is not here: run `npm install onnxruntime-web` in this directory");
  });
  ort.env.wasm.wasmPaths = RUNTIME;
  ort.env.wasm.numThreads = 1; // more need headers that a plain web server does not send
  const about = json(await fetched("export.json"));
  const name = "model.int8.onnx" in about.files ? "model.int8.onnx" : "model.onnx";
  const model = await checked(name, about);
  const tokenizer = json(await checked("tokenizer.json", about));
  const decoding = json(await checked("decoding.json", about));
  const network = await Network.open(ort, model, about);
  say(`${name}, ${(model.length / 1e6).toFixed(2)} MB, ${about.vocab_size} tokens`);
  return { network, text: new Text(tokenizer, decoding, about.tokenizer) };
}

// Draws one column of the strip and moves the others left by one.
function draw(tau) {
  const canvas = at("strip");
  const context = canvas.getContext("2d");
  context.drawImage(canvas, -1, 0);
  const band = Math.floor(canvas.height / tau.length);
  tau.forEach((layer, number) => {
    const rows = Math.max(1, band - 2);
    for (let row = 0; row < rows; row++) {
      const value = layer[Math.floor((row * layer.length) / rows)];
      const level = Math.min(1, Math.max(0, (Math.log10(value) + 0.5) / 2.5)); // 0.3 to 100 tokens
      context.fillStyle = `hsl(${260 - 210 * level} 90% ${8 + 62 * level}%)`;
      context.fillRect(canvas.width - 1, number * band + row, 1, 1);
    }
  });
}

async function go({ network, text }) {
  const settings = { ignoreEos: true };
  for (const name of ["temperature", "topP", "maxTokens", "elapsed"]) {
    if (!at(name).value || !at(name).checkValidity()) return say(`${at(name).min} to ${at(name).max} is expected: ${at(name).parentNode.textContent}`);
    settings[name] = at(name).valueAsNumber;
  }
  running = true;
  at("go").disabled = true;
  at("stop").disabled = false;
  const prompt = normalized(at("prompt").value);
  at("text").textContent = prompt;
  const begin = performance.now();
  let shown = begin;
  let tokens = 0;
  try {
    for await (const { text: piece, tau, count } of write(network, text, prompt, settings)) {
      at("text").append(piece);
      draw(tau);
      tokens = count;
      if (performance.now() - shown > 30) {
        await new Promise(requestAnimationFrame);
        shown = performance.now();
      }
      if (!running) break;
    }
    const unknown = text.unknownIn(prompt);
    const note = unknown.length ? `; unknown to the tokenizer: ${unknown.slice(0, 10).join(" ")}` : "";
    say(`${tokens} tokens, ${((1000 * tokens) / (performance.now() - begin)).toFixed(0)} tokens/s${note}`);
  } catch (error) {
    say(error.message);
  }
  running = false;
  at("go").disabled = false;
  at("stop").disabled = true;
}

at("temperature").addEventListener("input", () => (at("shown").textContent = Number(at("temperature").value).toFixed(2)));
at("stop").addEventListener("click", () => (running = false));
load().then(
  (loaded) => {
    at("go").disabled = false;
    at("go").addEventListener("click", () => go(loaded));
  },
  (error) => say(error.message),
);
