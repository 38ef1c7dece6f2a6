// The server: one function for each call, and streams as asynchronous iterators.

let key = "";

/** Set the API key; it is kept in memory alone. */
export function useKey(text) {
  key = text;
}

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code;
  }
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (key) all.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { method, body, headers: all, signal });
  if (answer.ok) return answer;
  let document = null;
  try { document = await answer.json(); } catch { /* no JSON: the status says it */ }
  throw new ApiError(answer.status, document?.error);
}

const json = { "Content-Type": "application/json" };
const post = (path, document, signal) => send(path, { method: "POST", headers: json, body: JSON.stringify(document), signal });

export const models = async () => (await (await send("v1/models")).json()).data;
export const complete = async (request, signal) => (await post("v1/completions", request, signal)).json();
export const tokenize = async (request) => (await post("tokenize", request)).json();
export const trace = async (request, signal) => (await post("v1/ltc/trace", request, signal)).json();
export const state = async (id) => (await send(`v1/ltc/states/${id}`, { headers: { Accept: "application/json" } })).json();
export const stateFile = async (id) => (await send(`v1/ltc/states/${id}`, { headers: { Accept: "application/octet-stream" } })).blob();
export const upload = async (file) =>
  (await send("v1/ltc/states", { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file })).json();
export const readOn = async (id, text) => (await post(`v1/ltc/states/${id}/read`, { text })).json();
export const mix = async (a, b, weight) => (await post("v1/ltc/states/mix", { a, b, weight })).json();

/** The events of a completion as they come. */
export async function* stream(request, signal) {
  const answer = await post("v1/completions", { ...request, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const document = JSON.parse(line.slice(6));
      if (document.error) throw new ApiError(500, document.error);
      yield document;
    }
  }
}
