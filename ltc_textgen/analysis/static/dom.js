// Elements, numbers and small arrays.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a string child is text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A table: the first row names the columns, the first column the rows. */
export function table(caption, [names, ...rows]) {
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map(([name, ...values]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...values.map((value) => element("td", {}, value))));
  const made = element("table", {}, element("caption", { class: "soft" }, caption), element("thead", {}, head),
    element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

/** Three significant digits; "never" for what is infinite (null in JSON). */
export function number(value, none = "never") {
  return value === null || value === undefined ? none : Number(value.toPrecision(3)).toString();
}

export function signed(value) {
  return value === null || value === undefined ? "-" : (value < 0 ? "" : "+") + value.toFixed(4);
}

/** Bytes of a base64 string. */
export function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
