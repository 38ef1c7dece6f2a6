// The page around ltc.js: loads the export that lies beside it, streams text, draws the time constants.
import { Network, Text, write } from "./ltc.js";

const RUNTIME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
const at = (id) => document.getElementById(id);
const say = (message) => (at("status").textContent = message);
let running = false;

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is missing: serve the directory that ltc export wrote`);
  return answer;
}

async function load() {
  const ort = await import(RUNTIME + "ort.wasm.bundle.min.mjs").catch(() => {
    throw new Error("onnxruntime-web is not here: run `npm install onnxruntime-web` in this directory");
  });
  ort.env.wasm.wasmPaths = RUNTIME;
  ort.env.wasm.numThreads = 1; // more need headers that a plain web server does not send
  const about = await (await fetched("export.json")).json();
  const name = "model.int8.onnx" in about.files ? "model.int8.onnx" : "model.onnx";
  const model = new Uint8Array(await (await fetched(name)).arrayBuffer());
  const tokenizer = await (await fetched("tokenizer.json")).json();
  const decoding = await (await fetched("decoding.json")).json();
  const network = await Network.open(ort, model, about);
  say(`${name}, ${(model.length / 1e6).toFixed(2)} MB, ${about.vocabulary} tokens`);
  return { network, text: new Text(tokenizer, decoding, about.tokenizer) };
}

// One column of the strip: everything else moves to the left by one.
function draw(tau) {
  const canvas = at("strip");
  const context = canvas.getContext("2d");
  context.drawImage(canvas, -1, 0);
  const band = Math.floor(canvas.height / tau.length);
  tau.forEach((layer, number) => {
    const rows = Math.max(1, band - 2);
    for (let row = 0; row < rows; row++) {
      const value = layer[Math.floor((row * layer.length) / rows)];
      const share = Math.min(1, Math.max(0, (Math.log10(value) + 0.5) / 2.5)); // 0.3 to 100 tokens
      context.fillStyle = `hsl(${260 - 210 * share} 90% ${8 + 62 * share}%)`;
      context.fillRect(canvas.width - 1, number * band + row, 1, 1);
    }
  });
}

async function go({ network, text }) {
  const settings = { ignoreSeparator: true };
  for (const name of ["temperature", "topP", "maxTokens", "elapsed"]) settings[name] = Number(at(name).value);
  running = true;
  at("go").disabled = true;
  at("stop").disabled = false;
  at("text").textContent = at("prompt").value;
  const begin = performance.now();
  let shown = begin;
  let tokens = 0;
  try {
    for await (const { text: piece, tau, count } of write(network, text, at("prompt").value, settings)) {
      at("text").append(piece);
      draw(tau);
      tokens = count;
      if (performance.now() - shown > 30) {
        await new Promise(requestAnimationFrame);
        shown = performance.now();
      }
      if (!running) break;
    }
    say(`${tokens} tokens, ${((1000 * tokens) / (performance.now() - begin)).toFixed(0)} tokens/s`);
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
