// Colours of numbers in 0..1: viridis, which rises evenly in lightness, and its text colour.

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"]
  .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Red, green and blue of a number in 0..1. */
export function viridis(value) {
  const place = Math.min(1, Math.max(0, value)) * (VIRIDIS.length - 1);
  const low = Math.floor(place), part = place - low, high = Math.min(low + 1, VIRIDIS.length - 1);
  return VIRIDIS[low].map((channel, index) => Math.round(channel + part * (VIRIDIS[high][index] - channel)));
}

/** A background, and the letters that can be read on it. */
export function shade(value) {
  const [red, green, blue] = viridis(value);
  const light = 0.299 * red + 0.587 * green + 0.114 * blue;
  return { background: `rgb(${red} ${green} ${blue})`, color: light > 128 ? "#111" : "#fff" };
}

/** Time constant of a code: one byte, as the server sends it. */
export const tauOf = (code) => (code === 0 ? NaN : code === 255 ? Infinity : 2 ** ((code - 64) / 8));

/** Place of a number between the smallest and the largest finite one of a list. */
export function scale(values) {
  const finite = values.filter(Number.isFinite);
  const low = Math.min(...finite), high = Math.max(...finite);
  const place = (value) => (value === Infinity ? 1 : high > low ? (value - low) / (high - low) : 0.5);
  return { low, high, place };
}
