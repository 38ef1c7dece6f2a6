// A link that shows the same: model, text, options and seed in its fragment, which is never sent to a server. It fills
// the page in and starts nothing.

export function write(fields) {
  const kept = Object.entries(fields).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `${location.origin}${location.pathname}#${new URLSearchParams(kept)}`;
}

export function read() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}
