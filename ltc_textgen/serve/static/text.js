// The text: typed characters and written tokens in one editable element.
//
// A written token is a span that knows its numbers; what the user types changes or splits it, and then the numbers are
// gone. Only the last tokens have spans of their own, so that a long text stays fast.

import { element } from "./dom.js";
import { shade } from "./colours.js";

export const MOST_SPANS = 4000;

export class Text {
  /** @param {HTMLElement} box - the editable element */
  constructor(box) {
    this.box = box;
    this.facts = new WeakMap();
    this.queue = [];
    this.spans = 0;
    this.coloured = null;
    this.scheduled = false;
  }

  get value() {
    this.flush();
    return this.box.textContent;
  }

  /** Replace the text; tokens are {text, facts}. */
  set(text, tokens = null) {
    this.queue = [];
    this.spans = 0;
    this.box.replaceChildren();
    if (tokens) this.append(tokens);
    else if (text) this.box.append(text);
    this.flush();
  }

  /** Append tokens {text, facts}; they are painted with the next frame. */
  append(tokens) {
    this.queue.push(...tokens);
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => { this.scheduled = false; this.flush(); });
  }

  flush() {
    if (!this.queue.length) return;
    const near = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 60;
    const made = document.createDocumentFragment();
    for (const token of this.queue) {
      const span = element("span", {}, token.text);
      this.facts.set(span, { ...token.facts, text: token.text });
      if (this.coloured) paint(span, this.coloured(this.facts.get(span)));
      made.append(span);
    }
    this.spans += this.queue.length;
    this.queue = [];
    this.box.append(made);
    this.shrink();
    if (near) this.box.scrollTop = this.box.scrollHeight;
  }

  /** Turn the oldest spans into plain text. */
  shrink() {
    if (this.spans <= MOST_SPANS) return;
    const kept = MOST_SPANS / 2, plain = [];
    let left = this.spans - kept, node = this.box.firstChild;
    while (node && left > 0) {
      const next = node.nextSibling;
      if (node.nodeType === Node.ELEMENT_NODE) left -= 1;
      plain.push(node.textContent);
      node.remove();
      node = next;
    }
    this.box.prepend(plain.join(""));
    this.spans = this.box.children.length;
  }

  /** The written tokens that are still as they were written: [span, facts]. */
  tokens() {
    this.flush();
    return [...this.box.children].map((span) => [span, this.of(span)]).filter(([, facts]) => facts);
  }

  /** Numbers of a span; nothing if it was changed. */
  of(span) {
    const facts = this.facts.get(span);
    return facts && facts.text === span.textContent ? facts : null;
  }

  /** The token at a node of the document. */
  at(node) {
    let inner = node;
    while (inner && inner.parentNode !== this.box) inner = inner.parentNode;
    return inner && inner.nodeType === Node.ELEMENT_NODE && this.of(inner) ? inner : null;
  }

  /** The text before a token, and the tokens before it. */
  before(span) {
    this.flush();
    let text = "";
    for (let node = this.box.firstChild; node && node !== span; node = node.nextSibling) text += node.textContent;
    return text;
  }

  /** Remove a token and all that follows. */
  cut(span) {
    while (span.nextSibling) span.nextSibling.remove();
    span.remove();
    this.spans = this.box.children.length;
  }

  /** Colour tokens by a function from their numbers to 0..1 or null; null takes colours away. */
  colour(value) {
    this.coloured = value;
    for (const [span, facts] of this.tokens()) paint(span, value ? value(facts) : null);
  }
}

function paint(span, value) {
  const { background, color } = value === null || value === undefined || Number.isNaN(value) ? { background: "", color: "" } : shade(value);
  span.style.background = background;
  span.style.color = color;
}
