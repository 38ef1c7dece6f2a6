// The page of `ltc analyse`: sections from the document that Python wrote.

import { histogram, lines } from "./chart.js";
import { bytes, element, number, signed, table } from "./dom.js";
import { colouredText, decoded, heatMap } from "./text.js";

const data = JSON.parse(document.getElementById("data").textContent);
const { report, view } = data;
const main = document.getElementById("main");

function section(title, note, ...children) {
  main.append(element("section", {}, element("h2", {}, title), element("p", { class: "note" }, note), ...children));
}

function textViews() {
  const surprise = view.surprise, most = 6;
  const views = [{ name: "surprise", low: "expected", high: `${most} nats and more`, neutral: 0.5,
    values: surprise.map((value) => (value === null ? NaN : 0.5 + Math.min(value, most) / most / 2)),
    shown: (index) => `${number(surprise[index], "-")} nats` }];
  for (const { name, codes } of view.tau) {
    const own = Array.from(bytes(codes), decoded);
    const logs = own.map(Math.log).filter(Number.isFinite);
    const mean = logs.reduce((a, b) => a + b, 0) / logs.length;
    const spread = Math.sqrt(logs.reduce((a, b) => a + (b - mean) ** 2, 0) / logs.length) || 1;
    views.push({ name: `tau of ${name}`, low: "shorter than its mean", high: "longer",
      values: own.map((value) => 0.5 + Math.max(-1, Math.min(1, (Math.log(value) - mean) / spread / 2)) / 2),
      shown: (index) => (Number.isFinite(own[index]) ? number(own[index]) : "infinite") });
  }
  return views;
}

function neuronPart(neuron) {
  const { correlation, intervention } = neuron;
  const places = (list) => element("ol", { class: "places" }, ...list.map((place) =>
    element("li", {}, place.before, element("mark", {}, place.piece), place.after, ` (${number(place.value)})`)));
  return element("section", { id: neuron.name }, element("h3", {}, neuron.name),
    element("p", {}, `Half-life ${number(neuron.half_life)} tokens, interquartile range of log tau ${number(neuron.spread_of_log_tau)}. `,
      element("strong", {}, "Correlation: "), `follows ${correlation.label} with AUC ${correlation.auc.toFixed(3)} on the half of the text that did not choose it. `,
      element("strong", {}, "Intervention: "), `without it the loss changes by ${signed(intervention.all.change)} nats per token ` +
      `(standard error ${number(intervention.all.error, "-")}); with the label ${signed(intervention.with_label)}, without ${signed(intervention.without_label)}.`),
    element("details", {}, element("summary", {}, "Where its state is highest"), places(neuron.highest)),
    element("details", {}, element("summary", {}, "Where its state is lowest"), places(neuron.lowest)));
}

document.getElementById("summary").textContent =
  `${data.run} on ${data.text}: ${report.tokens.toLocaleString("en")} tokens, ${report.loss.toFixed(4)} nats per token.`;

const lives = report.half_lives;
section("Half-lives", "Tokens after which half of a difference in a neuron's state is left: ln 2 tau, the median over the text.",
  histogram("Neurons by half-life", view.half_lives, "tokens"),
  table("Half-lives by layer, in tokens", [["layer", "shortest", "10 %", "median", "90 %", "longest", "range of log tau"],
    ...lives.layers.map((layer, index) => [`${index}`, ...layer.half_life.map((value) => number(value)), number(layer.spread_of_log_tau)])]),
  table("Distributions fitted to the time constants", [["distribution", "shape", "scale", "log likelihood", "distance (KS)"],
    ...["inverse_gamma", "log_normal"].map((name) => [name.replace("_", " "), number(lives[name].shape), number(lives[name].scale),
      lives[name].log_likelihood.toFixed(4), lives[name].distance.toFixed(3)])]));

if (report.effective_timescale) {
  section("Effective timescales", "The same segment after two contexts: tokens until the states of a neuron differ by half of what they did. " +
    "A neuron that listens to slow ones is slow, whatever its own time constant.",
    table("Half-distances by layer", [["layer", "median, tokens", "never within the segment", "rank correlation with tau"],
      ...report.effective_timescale.layers.map((layer, index) => [`${index}`, number(layer.median),
        `${(100 * layer.not_forgotten).toFixed(0)} %`, number(layer.correlation_with_tau, "-")])]));
}

section("Text", "Time constants are shown against the neuron's own mean over the text: they move little, so no common scale would show it.",
  colouredText(view.pieces, textViews()));

section("Time constants over the text", "Of evenly chosen neurons of each layer, sorted by their median.",
  ...view.heat.map((map, index) => heatMap(`Layer ${index}: ${map.rows} neurons over ${map.columns} tokens.`, map.codes, map.rows, map.columns)));

const curve = report.memory_curve;
section("Memory curve", `The loss of ${curve.tokens} tokens when the state was reset k tokens before; ${curve.whole.toFixed(4)} nats with all of the past.`,
  lines("Increase of the loss after a reset, nats per token", [{ name: "increase", points: curve.distance.map((k, index) => [k, curve.increase[index]]) }], "k, tokens"));

section("Bands of time constants (intervention)", "All neurons in bands of equal size; each band silenced at its mean. Change of the loss in nats per token, by the frequency of the word.",
  table("Change of the loss without a band", [["half-lives", "all tokens", "rare words", "middle", "frequent words"],
    ...report.routing.map((row) => [row.half_life.map((value) => number(value)).join(" to "), signed(row.change),
      signed(row.words.rare), signed(row.words.middle), signed(row.words.frequent)])]));

section("What neurons follow (correlation)", "AUC of the best neuron on the half of the text that did not choose it, and the best that shifted labels reach. " +
  "A neuron may follow a property without the network using it.",
  table("Labels", [["label", "best neuron", "AUC", "baseline, median", "highest", "p"],
    ...Object.entries(report.correlation).map(([name, found]) => [name, found.neurons[0], found.auc[0].toFixed(3),
      found.baseline.median.toFixed(3), found.baseline.highest.toFixed(3), found.p_value.toFixed(2)])]));

if (report.neurons.length) {
  section("Neurons that follow labels best", "What the prediction loses without each, and where they are extreme.",
    ...report.neurons.map(neuronPart));
}
