// The options of sampling as a form, and as the fields of a request.

import { byId, element } from "./dom.js";

const FIELDS = [
  ["max_tokens", "Tokens", 200, { min: 1, step: 1 }],
  ["temperature", "Temperature", 0.8, { min: 0, max: 100, step: "any" }],
  ["top_p", "Top p", 1, { min: 0.01, max: 1, step: "any" }],
  ["top_k", "Top k (0: all)", 0, { min: 0, step: 1 }],
  ["min_p", "Min p", 0, { min: 0, max: 1, step: "any" }],
  ["repetition_penalty", "Repetition penalty", 1, { min: 0.01, max: 100, step: "any" }],
  ["presence_penalty", "Presence penalty", 0, { min: -2, max: 2, step: "any" }],
  ["frequency_penalty", "Frequency penalty", 0, { min: -2, max: 2, step: "any" }],
];

const inputOf = (name) => byId(`option-${name}`);

/** Build the form; `values` come from a link. */
export function build(form, values) {
  for (const [name, label, value, limits] of FIELDS) {
    const input = element("input", { id: `option-${name}`, type: "number", required: true, value: values[name] ?? value, ...limits });
    form.append(element("label", {}, label, input));
  }
  const seed = element("input", { id: "option-seed", inputMode: "numeric", pattern: "\\d{0,19}", autocomplete: "off", value: values.seed ?? "" });
  const stop = element("input", { id: "option-stop", autocomplete: "off", value: values.stop ?? "" });
  const probabilities = element("input", { id: "option-probabilities", type: "checkbox", checked: values.probabilities !== "0" });
  const live = element("input", { id: "option-live", type: "checkbox", checked: values.live !== "0" });
  const whole = element("input", { id: "option-whole", type: "checkbox", checked: values.whole === "1" });
  form.append(element("label", { className: "wide" }, "Seed (empty: drawn)", seed),
    element("label", { className: "wide" }, "Stop strings, apart by |, \\n for a line end", stop),
    element("label", { className: "check" }, probabilities, "Probabilities"),
    element("label", { className: "check" }, live, "Neurons, live"),
    element("label", { className: "check wide" }, whole, "Show the text only when it is complete"));
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** The fields of a request; the seed as text, since it may be larger than a JavaScript number holds exactly. */
export function options() {
  const fields = Object.fromEntries(FIELDS.map(([name]) => [name, Number(inputOf(name).value)]));
  const stop = inputOf("stop").value.split("|").filter(Boolean).map((text) => text.replaceAll("\\n", "\n"));
  return { ...fields, ...(stop.length ? { stop } : {}), ...(inputOf("probabilities").checked ? { logprobs: 5 } : {}) };
}

/** The values of the form, for a link. */
export function values() {
  const plain = Object.fromEntries([...FIELDS.map(([name]) => name), "seed", "stop"].map((name) => [name, inputOf(name).value]));
  return { ...plain, probabilities: Number(inputOf("probabilities").checked), live: Number(inputOf("live").checked) };
}

export const seed = () => inputOf("seed").value.trim();
export const live = () => inputOf("live").checked;
export const whole = () => inputOf("whole").checked;
export const valid = (form) => form.reportValidity();
