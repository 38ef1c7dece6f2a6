// A heat map of neurons over tokens on a canvas, with a cell that the keyboard moves.

import { tauOf, viridis } from "./colours.js";
import { number } from "./dom.js";

const PALETTE = Array.from({ length: 256 }, (_, code) => viridis((code - 24) / 140));
const MOST_COLUMNS = 1024;

export class HeatMap {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} status - where the cell is described
   * @param {(row: number) => string} name - name of a neuron
   */
  constructor(canvas, status, name) {
    Object.assign(this, { canvas, status, name, columns: [], rows: 0, order: [], cell: { row: 0, column: 0 } });
    canvas.tabIndex = 0;
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      this.move(Math.floor(((event.clientY - box.top) / box.height) * this.rows),
        Math.floor(((event.clientX - box.left) / box.width) * this.columns.length));
    });
    canvas.addEventListener("click", () => this.onpick?.(this.order[this.cell.row]));
  }

  clear() {
    this.columns = [];
    this.draw();
  }

  /** Replace everything: a column of codes for each token, with its text. */
  set(columns, texts) {
    this.columns = columns.slice(-MOST_COLUMNS).map((codes, index) => ({ codes, text: texts[texts.length - Math.min(columns.length, MOST_COLUMNS) + index] }));
    this.sort();
    this.draw();
  }

  /** Add a column. */
  add(codes, text) {
    this.columns.push({ codes, text });
    if (this.columns.length > MOST_COLUMNS) this.columns.shift();
    if (this.rows !== codes.length) this.sort();
    this.schedule();
  }

  /** Show time constants, or how far each is from the neuron's own median. */
  show(relative) {
    this.relative = relative;
    this.draw();
  }

  /** Rows by median time constant, short ones first. */
  sort() {
    this.rows = this.columns[0]?.codes.length ?? 0;
    const median = Array.from({ length: this.rows }, (_, row) => {
      const sorted = this.columns.map((column) => column.codes[row]).sort((a, b) => a - b);
      return sorted[sorted.length >> 1];
    });
    this.median = median;
    this.order = median.map((_, row) => row).sort((a, b) => median[a] - median[b] || a - b);
  }

  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const { canvas, columns, rows } = this;
    canvas.width = Math.max(1, columns.length);
    canvas.height = Math.max(1, rows);
    if (!rows || !columns.length) return;
    const context = canvas.getContext("2d"), image = context.createImageData(columns.length, rows), data = image.data;
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0, at = row * columns.length * 4; column < columns.length; column += 1, at += 4) {
        const neuron = this.order[row], code = columns[column].codes[neuron];
        const [red, green, blue] = PALETTE[this.relative ? Math.min(255, Math.max(0, 94 + 6 * (code - this.median[neuron]))) : code];
        data[at] = red; data[at + 1] = green; data[at + 2] = blue; data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
  }

  move(row, column) {
    if (!this.rows || !this.columns.length) return;
    this.cell = { row: Math.min(this.rows - 1, Math.max(0, row)), column: Math.min(this.columns.length - 1, Math.max(0, column)) };
    const { codes, text } = this.columns[this.cell.column], neuron = this.order[this.cell.row];
    this.status.textContent = `${this.name(neuron)} at ${JSON.stringify(text ?? "")}: tau ${number(tauOf(codes[neuron]))} tokens`;
  }

  key(event) {
    const { row, column } = this.cell;
    const moves = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [row, 0], End: [row, this.columns.length - 1], PageUp: [0, column], PageDown: [this.rows - 1, column] };
    if (event.key === "Enter") this.onpick?.(this.order[row]);
    else if (moves[event.key]) this.move(...moves[event.key]);
    else return;
    event.preventDefault();
  }
}
