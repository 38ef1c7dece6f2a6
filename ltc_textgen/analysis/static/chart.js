// Line charts and histograms as SVG, each with a table of the same numbers.

import { element, number, svg, table } from "./dom.js";

const WIDTH = 640, HEIGHT = 260, LEFT = 72, BOTTOM = 40, TOP = 12;

function scale([low, high], from, to, log) {
  const place = log ? Math.log : (value) => value;
  const span = place(high) - place(low) || 1;
  return (value) => from + ((place(value) - place(low)) / span) * (to - from);
}

function ticks([low, high], log) {
  if (!log) return [0, 1, 2, 3, 4].map((step) => low + ((high - low) * step) / 4);
  const powers = [];
  for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power += 1) powers.push(10 ** power);
  return powers.length > 1 ? powers : [low, high];
}

function axes(drawing, x, y, options) {
  drawing.append(svg("path", { class: "axis", fill: "none", d: `M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - 8}` }));
  for (const value of ticks(options.x, options.log)) {
    drawing.append(svg("text", { x: x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, number(value)));
  }
  for (const value of ticks(options.y, false)) {
    drawing.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  drawing.append(svg("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, options.label));
}

/** Curves [{name, points: [[x, y], ...]}] on common axes. */
export function lines(title, curves, label, log = true) {
  const points = curves.flatMap((curve) => curve.points);
  const range = (index) => [Math.min(...points.map((p) => p[index])), Math.max(...points.map((p) => p[index]))];
  const options = { x: range(0), y: [Math.min(0, range(1)[0]), range(1)[1]], label, log };
  const x = scale(options.x, LEFT, WIDTH - 16, log), y = scale(options.y, HEIGHT - BOTTOM, TOP, false);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  axes(drawing, x, y, options);
  curves.forEach((curve, index) => {
    const path = curve.points.map((p, at) => `${at ? "L" : "M"}${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("");
    drawing.append(svg("path", { d: path, fill: "none", stroke: `var(--series-${index % 4})`, "stroke-width": 2,
      "stroke-dasharray": index < 4 ? "none" : "5 3" }));
  });
  const rows = curves[0].points.map((p, at) => [number(p[0]), ...curves.map((curve) => number(curve.points[at]?.[1], "-"))]);
  const numbers = table(title, [[label, ...curves.map((curve) => curve.name)], ...rows]);
  const legend = curves.length < 2 ? [] : [element("p", {}, ...curves.map((curve, index) =>
    element("span", { style: `color: var(--series-${index % 4}); margin-right: 1rem` }, `${index < 4 ? "\u2014" : "- -"} ${curve.name}`)))];
  return element("figure", {}, drawing, ...legend, element("figcaption", {}, title),
    element("details", {}, element("summary", {}, "Numbers"), numbers));
}

/** Counts of values per bin on a logarithmic axis, one curve for each layer. */
export function histogram(title, layers, label, bins = 24) {
  const every = layers.flatMap((layer) => layer.filter((value) => value !== null && value > 0));
  const low = Math.log(Math.min(...every)), high = Math.log(Math.max(...every)) + 1e-9;
  const curves = layers.map((layer, index) => {
    const counts = new Array(bins).fill(0);
    for (const value of layer) if (value > 0) counts[Math.floor(((Math.log(value) - low) / (high - low)) * bins)] += 1;
    const points = counts.map((count, bin) => [Math.exp(low + ((bin + 0.5) / bins) * (high - low)), count]);
    return { name: `layer ${index}`, points };
  });
  return lines(title, curves, label);
}
