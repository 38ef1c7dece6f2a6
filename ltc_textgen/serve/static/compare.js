// The same text with and without an intervention on a neuron, from the same seed.

import * as api from "./api.js";
import { byId, element, fill } from "./dom.js";

/** Build the form. */
export function build(form) {
  form.append(
    element("label", {}, "Neuron", element("input", { id: "clamp-neuron", value: "L0N0", pattern: "L\\d+N\\d+", autocomplete: "off" })),
    element("label", {}, "From token", element("input", { id: "clamp-from", type: "number", min: 0, step: 1, value: 0 })),
    element("label", {}, "How", element("select", { id: "clamp-how" },
      element("option", { value: "tau_factor" }, "time constant times"), element("option", { value: "value" }, "state held at"))),
    element("label", {}, "Number", element("input", { id: "clamp-number", type: "number", step: "any", value: 10 })));
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** Write both texts after a request without `ltc.clamp`. */
export async function write(request) {
  const clamp = { neuron: byId("clamp-neuron").value, [byId("clamp-how").value]: Number(byId("clamp-number").value), from: Number(byId("clamp-from").value) };
  const plain = await api.complete(request);
  const seed = request.seed ?? plain.ltc.seed;
  const moved = await api.complete({ ...request, seed, ltc: { ...request.ltc, clamp: [clamp] } });
  const texts = [plain, moved].map((answer) => [...answer.choices[0].text]);
  let at = 0;
  while (at < texts[0].length && texts[0][at] === texts[1][at]) at += 1;
  const same = at === texts[0].length && at === texts[1].length;
  const titles = ["As it is", `${clamp.neuron} clamped`];
  fill(byId("both"), ...texts.map((text, index) => element("div", {}, element("h3", {}, titles[index]),
    element("pre", { tabIndex: 0 }, text.slice(0, at).join(""), ...(same ? [] : [element("mark", {}, text[at] ?? "∎")]), text.slice(at + 1).join("")))));
  return same ? "Both texts are the same." : `The texts differ from character ${at} on.`;
}
