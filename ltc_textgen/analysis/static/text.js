// A text whose tokens are coloured by numbers, and a heat map of neurons over tokens.

import { bytes, element, number } from "./dom.js";

/** log2 of a time constant from its code, as Python's `log_codes` writes it. */
export function decoded(code) {
  return code === 255 ? Infinity : 2 ** ((code - 64) / 8);
}

/**
 * Coloured text. Views are [{name, low, high, values, shown, neutral}]: values in 0..1 around 0.5, `neutral` where low is no cold colour, `shown(index)` in words.
 * Colours are mixed into the page's own, so that the letters keep their contrast.
 */
export function colouredText(pieces, views) {
  const choice = element("select", { id: "view" }, ...views.map((view, index) => element("option", { value: index }, view.name)));
  const status = element("p", { class: "note", id: "token" }, "Point at a token for its numbers.");
  const box = element("div", { class: "text", tabindex: "0", role: "region", "aria-label": "coloured text" });
  const spans = pieces.map((piece, index) => element("span", { "data-index": index }, piece));
  box.append(...spans);
  const legend = element("p");
  const paint = () => {
    const view = views[Number(choice.value)];
    legend.replaceChildren(element("span", { style: "background: " + mixed(view.neutral ?? 0) }, view.low), " to ",
      element("span", { style: "background: " + mixed(1) }, view.high));
    spans.forEach((span, index) => { span.style.background = mixed(view.values[index]); });
  };
  box.addEventListener("pointerover", (event) => {
    const index = event.target.dataset?.index;
    if (index !== undefined) {
      status.textContent = `token ${index} ${JSON.stringify(pieces[index])}: ` +
        views.map((view) => `${view.name} ${view.shown(Number(index))}`).join(", ");
    }
  });
  choice.addEventListener("change", paint);
  paint();
  return element("div", {}, element("p", {}, element("label", { for: "view" }, "Colour by "), choice), legend, box, status);
}

function mixed(value) {
  if (value === null || Number.isNaN(value)) return "none";
  const strength = Math.round(Math.min(1, Math.abs(value - 0.5) * 2) * 42);
  return `color-mix(in oklab, var(${value >= 0.5 ? "--hot" : "--cold"}) ${strength}%, var(--page))`;
}

/** Heat map of log tau: rows are neurons from short to long, columns tokens. */
export function heatMap(title, codes, rows, columns) {
  const data = bytes(codes);
  const canvas = element("canvas", { width: columns, height: rows, role: "img", "aria-label": title, style: "height: 16rem" });
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  const finite = data.filter((code) => code < 255);
  const low = finite.reduce((a, b) => Math.min(a, b), 254), high = finite.reduce((a, b) => Math.max(a, b), 0);
  data.forEach((code, at) => {
    const part = code === 255 ? 1 : (code - low) / (high - low || 1);
    // From dark blue over teal to yellow, light rising all the way: readable in grey, too.
    image.data.set([255 * part ** 1.5, 30 + 205 * part, 90 + 80 * part - 130 * part ** 3, 255], 4 * at);
  });
  context.putImageData(image, 0, 0);
  const caption = `${title} Dark is ${number(decoded(low))} tokens, bright ${number(decoded(high))}.`;
  return element("figure", {}, canvas, element("figcaption", {}, caption));
}
