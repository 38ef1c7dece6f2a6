// Saved states: listed on this page, written from, downloaded, mixed and dropped.

import * as api from "./api.js";
import { byId, download, element, fill, number } from "./dom.js";

const known = [];
export let before = null;

/** Add a state that the server has. */
export function add(state, name) {
  if (!known.some((one) => one.id === state.id)) known.push({ ...state, name });
  draw();
}

/** Write on from a state; null begins a document. */
export function use(state) {
  before = state;
  byId("before").textContent = state ? `Text continues from ${state.name}, ${number(state.tokens)} tokens.` : "";
  if (state) byId("before").append(" ", element("button", { type: "button", onclick: () => use(null) }, "Begin a document instead"));
}

function draw() {
  fill(byId("states"), ...known.map((state) => element("li", {}, `${state.name}: ${number(state.tokens)} tokens, ${number(state.bytes / 1024)} kB `,
    element("button", { type: "button", onclick: () => use(state) }, "Write from it"), " ",
    element("button", { type: "button", onclick: async () => download(await api.stateFile(state.id), `${state.name}.state`) }, "Download"), " ",
    ...(before && before.id !== state.id ? [element("button", { type: "button", onclick: () => mixed(state) }, "Mix with the other")] : []))));
}

async function mixed(state) {
  add(await api.mix(before.id, state.id, 0.5), `${before.name} + ${state.name}`);
}
