// The panel of one token: its probability, and the alternatives as buttons that continue from there.

import { tauOf } from "./colours.js";
import { byId, element, fill, number, visible } from "./dom.js";

/**
 * Show a token.
 * @param {object} facts - numbers of the token
 * @param {(token: string) => void} choose - called with the text of an alternative
 */
export function show(facts, choose) {
  const parts = [`${visible(facts.text)}`];
  if (facts.logprob !== undefined && facts.logprob !== null) {
    parts.push(`probability ${percent(facts.logprob)}`, `surprise ${number(-facts.logprob / Math.LN2)} bits`);
  }
  for (const [name, code] of Object.entries(facts.tau ?? {})) {
    if (name === "median") parts.push(`median tau by layer ${code.map((one) => number(tauOf(one))).join(", ")}`);
    else parts.push(`${name} tau ${number(tauOf(code))}`);
  }
  for (const [name, value] of Object.entries(facts.states ?? {})) parts.push(`${name} state ${number(value)}`);
  byId("token").textContent = parts.join(" · ");
  const buttons = (facts.top ?? []).filter(([token]) => !token.startsWith("bytes:") && !token.startsWith("<|")).map(([token, logprob]) =>
    element("button", { type: "button", onclick: () => choose(token), disabled: token === facts.text,
      title: token === facts.text ? "this one was drawn" : "write on from here" }, `${visible(token)} ${percent(logprob)}`));
  fill(byId("alternatives"), ...buttons);
}

const percent = (logprob) => `${number(100 * Math.exp(logprob))} %`;
