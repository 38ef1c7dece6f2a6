// Curves and histograms with uPlot, which has no table of its own: each comes with one.

import uPlot from "./vendor/uPlot.esm.js";
import { element, fill, number, table } from "./dom.js";

const STROKES = ["#3f7fbf", "#c9622f", "#3a9c6b", "#a65bb0", "#8a7b2d", "#5a5a5a"];
const DASHES = [[], [6, 3], [2, 2], [8, 2, 2, 2], [1, 3], [10, 4]];
const shown = new WeakMap();

/**
 * Curves on common axes, in place of what a figure holds.
 * @param {HTMLElement} figure
 * @param {string} title
 * @param {{x: number[], label: string, curves: {name: string, y: number[]}[], bars?: boolean, logX?: boolean}} data
 */
export function chart(figure, title, { x, label, curves, bars = false, logX = false }) {
  shown.get(figure)?.destroy();
  const ink = getComputedStyle(figure).color, grid = { stroke: "rgb(128 128 128 / 0.25)" };
  const holder = element("div", { className: "plot", role: "img" });
  holder.setAttribute("aria-label", `${title}; the numbers are in the table below`);
  const rows = x.map((value, at) => [number(value), ...curves.map((curve) => number(curve.y[at]))]);
  const numbers = element("details", {}, element("summary", {}, "Numbers"),
    element("div", { className: "scroll", tabIndex: 0 }, table(title, [[label, ...curves.map((curve) => curve.name)], ...rows.slice(0, 200)])));
  fill(figure, holder, element("figcaption", {}, title), numbers);
  const series = curves.map((curve, index) => ({ label: curve.name, stroke: STROKES[index % 6], dash: DASHES[index % 6], width: 1.5,
    points: { show: false }, ...(bars ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}) }));
  const options = { width: Math.max(240, figure.clientWidth || 320), height: 180, cursor: { drag: { x: false, y: false } },
    scales: { x: { time: false, ...(logX ? { distr: 3 } : {}) } },
    axes: [{ stroke: ink, grid, label, labelSize: 20 }, { stroke: ink, grid, size: 54 }],
    series: [{ label }, ...series] };
  shown.set(figure, new uPlot(options, [x, ...curves.map((curve) => curve.y)], holder));
}

/** Counts of positive numbers in bins that are even on a logarithmic axis. */
export function counted(layers, bins = 24) {
  const every = layers.flat().filter((value) => value > 0 && Number.isFinite(value));
  if (!every.length) return null;
  const low = Math.log(Math.min(...every)), high = Math.log(Math.max(...every)) + 1e-9;
  const x = Array.from({ length: bins }, (_, bin) => Math.exp(low + ((bin + 0.5) / bins) * (high - low)));
  const curves = layers.map((layer, index) => {
    const y = new Array(bins).fill(0);
    for (const value of layer) if (value > 0 && Number.isFinite(value)) y[Math.min(bins - 1, Math.floor(((Math.log(value) - low) / (high - low)) * bins))] += 1;
    return { name: `layer ${index}`, y };
  });
  return { x, curves };
}
