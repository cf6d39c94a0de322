"use strict";
/* Tables: sorted by a click on a heading, filtered, a page at a time, copied as tab-separated text. */

const PAGE = 50;
const NUMBER = /^[<+\-−≈]?\s*[\d.,]+(e[+-]?\d+)?/;

/** What a cell says, without what stands smaller below it. */
function textOf(cell) {
  const small = cell.querySelector("small");
  const text = cell.textContent;
  return (small ? text.slice(0, text.length - small.textContent.length) : text).trim();
}

/** What a text of a column is sorted by: in a column of numbers its number, or itself. */
function keyOf(text, number) {
  if (!number) return text;
  const found = NUMBER.exec(text);
  const value = found ? parseFloat(found[0].replace(/[<≈,\s]/g, "").replace("−", "-")) : NaN;
  return Number.isNaN(value) ? text : value;
}

/** Texts after numbers, blanks last whatever the direction. Identifiers go by their characters; in
    other texts a number within counts as one: r=8 before r=16. */
function compare(a, b, sign, identifiers) {
  const blank = (key) => key === "" || key === "-";
  if (blank(a) || blank(b)) return blank(a) - blank(b);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  if (identifiers) return sign * (Number(a > b) - Number(a < b));
  return sign * a.localeCompare(b, "en", { numeric: true });
}

class Grid {
  /** lines: {cells: texts, facets, row(): its element}, in the order in which they first stand. */
  constructor(table, lines) {
    this.table = table;
    this.lines = lines;
    this.shown = lines;
    this.sorted = { column: -1, sign: 0 };
    this.page = 0;
    this.method = "";
    this.headings = [...table.tHead.rows[0].cells];
    this.headings.forEach((heading, column) => this.sortable(heading, column));
    this.pager = this.makePager();
    this.draw();
  }

  static of(table) {
    const lines = [...table.tBodies[0].rows].map((row) => ({
      cells: [...row.cells].map(textOf),
      below: [...row.cells].map((cell) => (cell.querySelector("small") || {}).textContent || ""),
      facets: { ...row.dataset },
      row: () => row,
    }));
    return new Grid(table, lines);
  }

  sortable(heading, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => this.sort(column));
  }

  sort(column) {
    const number = this.headings[column].classList.contains("number");
    const signs = number ? [-1, 1, 0] : [1, -1, 0];
    const place = this.sorted.column === column ? signs.indexOf(this.sorted.sign) + 1 : 0;
    this.stand({ column, sign: signs[place % 3] }, 0);
  }

  /** Sorted by a column, at a page. */
  stand(sorted, page) {
    this.sorted = sorted;
    this.headings.forEach((heading, i) => {
      const sign = i === sorted.column ? sorted.sign : 0;
      heading.setAttribute("aria-sort", ["descending", "none", "ascending"][sign + 1]);
    });
    this.page = page;
    this.draw();
  }

  filter(keeps, method) {
    this.shown = this.lines.filter(keeps);
    this.method = method;
    this.page = 0;
    this.draw();
  }

  inOrder() {
    const { column, sign } = this.sorted;
    if (!sign) return this.shown;
    const { classList } = this.headings[column];
    const [number, identifiers] = ["number", "identifier"].map((kind) => classList.contains(kind));
    return this.shown
      .map((line) => [keyOf(line.cells[column], number), line])
      .sort((a, b) => compare(a[0], b[0], sign, identifiers))
      .map(([, line]) => line);
  }

  hides(column) {
    const own = this.headings[column].dataset.method;
    return Boolean(this.method && own && own !== this.method);
  }

  draw() {
    const order = this.inOrder();
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    this.page = Math.min(this.page, pages - 1);
    const first = this.page * PAGE;
    const rows = order.slice(first, first + PAGE).map((line) => line.row());
    this.table.tBodies[0].replaceChildren(...(rows.length ? rows : [this.nothing()]));
    for (const row of [this.table.tHead.rows[0], ...rows]) {
      [...row.cells].forEach((cell, column) => (cell.hidden = this.hides(column)));
    }
    const last = first + rows.length;
    this.pager.hidden = this.lines.length <= PAGE;
    this.pager.querySelector("output").textContent =
      order.length ? `${first + 1} to ${last} of ${order.length}` : "none";
    this.pager.querySelector(".before").disabled = this.page === 0;
    this.pager.querySelector(".after").disabled = this.page >= pages - 1;
  }

  /** A line that says that there is none. */
  nothing() {
    const row = document.createElement("tr");
    const cell = row.insertCell();
    cell.colSpan = this.headings.length;
    cell.className = "muted";
    cell.textContent = this.lines.length ? "No line has what is chosen above." : "There is no line.";
    return row;
  }

  makePager() {
    const bar = document.createElement("div");
    bar.className = "pager";
    const button = (kind, text, step) => {
      const made = document.createElement("button");
      made.type = "button";
      made.className = kind;
      made.textContent = text;
      made.addEventListener("click", () => {
        this.page += step;
        this.draw();
      });
      return made;
    };
    const output = document.createElement("output");
    output.setAttribute("aria-live", "polite");
    bar.append(button("before", "Previous", -1), output, button("after", "Next", 1));
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "copy";
    copy.textContent = "Copy table";
    copy.addEventListener("click", () => copyText(this.asText()));
    const place = this.table.closest(".scroll");
    place.after(bar, copy);
    return bar;
  }

  /** All lines that the filter leaves, as tab-separated text; what stands smaller below the texts
      of a column (interval, paper's number) is a column of its own. */
  asText() {
    const kept = this.headings.map((_, column) => column).filter((column) => !this.hides(column));
    const below = (column) => this.lines.some((line) => line.below && line.below[column]);
    const columns = kept.flatMap((column) => {
      const own = [textOf(this.headings[column]), (line) => line.cells[column]];
      if (!below(column)) return [own];
      return [own, [`${own[0]}: 95 % interval; paper`, (line) => line.below[column]]];
    });
    const lines = this.inOrder().map((line) => columns.map(([, text]) => text(line)));
    return [columns.map(([head]) => head), ...lines].map((texts) => texts.join("\t")).join("\n");
  }
}

let toCopy = null;

function copyText(text) {
  toCopy = text;
  document.execCommand("copy");
  toCopy = null;
}

/** What is selected of a table, a line a row and a tab between cells. */
function selectedText(selection) {
  const range = selection.rangeCount ? selection.getRangeAt(0) : null;
  const around = range && range.commonAncestorContainer;
  const element = around && (around.nodeType === 1 ? around : around.parentElement);
  const table = element && element.closest("table.grid");
  if (!table || element.closest("td, th")) return null;
  const rows = [...table.rows].map((row) =>
    [...row.cells].filter((cell) => !cell.hidden && range.intersectsNode(cell)).map(textOf));
  return rows.filter((texts) => texts.length).map((texts) => texts.join("\t")).join("\n");
}

document.addEventListener("copy", (event) => {
  const text = toCopy === null ? selectedText(document.getSelection()) : toCopy;
  if (text === null) return;
  event.clipboardData.setData("text/plain", text);
  event.preventDefault();
});
