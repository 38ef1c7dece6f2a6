// node host.mjs EXPORT < requests.json: encodes and decodes texts as the page does and, given a folder with
// onnxruntime-web, follows the network. JSON in, JSON out.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [directory, modules] = process.argv.slice(2);
const { Network, Text, choose, write } = await import(pathToFileURL(`${directory}/ltc.js`));
const json = (name) => JSON.parse(readFileSync(`${directory}/${name}`, "utf-8"));
const about = json("export.json");
const text = new Text(json("tokenizer.json"), json("decoding.json"), about.tokenizer);
const request = JSON.parse(readFileSync(0, "utf-8"));
const answer = {};
if (request.texts) answer.ids = request.texts.map((one) => text.encode(one));
if (request.ids) {
  answer.texts = request.ids.map((ids) => {
    const stream = text.stream();
    return ids.map((id) => stream.push(id)).join("") + stream.flush();
  });
}
if (request.logits) {
  answer.chosen = request.uniform.map((u) => choose(Float32Array.from(request.logits), { ...request.settings, random: () => u }));
}
if (modules) {
  const ort = await import(pathToFileURL(`${modules}/onnxruntime-web/dist/ort.node.min.mjs`));
  ort.env.wasm.numThreads = 1;
  const network = await Network.open(ort, new Uint8Array(readFileSync(`${directory}/model.onnx`)), about);
  let written = "";
  const settings = { temperature: 0, maxTokens: request.maxTokens, ignoreSeparator: true };
  let tau;
  for await (const piece of write(network, text, request.prompt, settings)) {
    written += piece.text;
    tau = piece.tau;
  }
  answer.written = written;
  answer.tau = tau.map((layer) => Array.from(layer));
}
console.log(JSON.stringify(answer));
