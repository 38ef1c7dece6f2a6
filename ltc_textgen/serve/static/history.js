// Versions of the text as a tree: undo goes to the parent, redo to the newest child, and every branch stays.

export class History {
  constructor() {
    this.nodes = [{ parent: null, text: "", tokens: null, label: "empty", children: [] }];
    this.current = 0;
  }

  /** Add a version after the current one, unless it is the same. */
  add(text, tokens, label) {
    if (this.nodes[this.current].text === text) {
      if (tokens) this.nodes[this.current].tokens = tokens;
      return;
    }
    this.nodes.push({ parent: this.current, text, tokens, label, children: [] });
    this.nodes[this.current].children.push(this.nodes.length - 1);
    this.current = this.nodes.length - 1;
  }

  /** Go to a version, and return it. */
  go(number) {
    this.current = number;
    return this.nodes[number];
  }

  undo() {
    const { parent } = this.nodes[this.current];
    return parent === null ? null : this.go(parent);
  }

  redo() {
    const child = this.nodes[this.current].children.at(-1);
    return child === undefined ? null : this.go(child);
  }
}
