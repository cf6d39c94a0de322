"use strict";
/* Charts: each drawn when it is first seen, in the colours of the page, by Vega without eval. */

const dark = matchMedia("(prefers-color-scheme: dark)");
const tip = document.getElementById("tip");

/** What is told of a point where the pointer rests. */
function tell(handler, event, item, value) {
  if (!value) {
    tip.hidden = true;
    return;
  }
  const list = document.createElement("dl");
  for (const [key, text] of Object.entries(value)) {
    if (text === "undefined") continue;
    const name = document.createElement("dt");
    const content = document.createElement("dd");
    name.textContent = key;
    content.textContent = text;
    list.append(name, content);
  }
  tip.replaceChildren(list);
  tip.hidden = false;
  const { clientX, clientY } = event;
  const left = Math.min(clientX + 12, innerWidth - tip.offsetWidth - 8);
  const top = Math.min(clientY + 12, innerHeight - tip.offsetHeight - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function untell() {
  tip.hidden = true;
}

/* A chart is an image with a description; what is drawn inside is hidden from who reads by ear, and
   its values and records stand in a list below it. */
class Chart {
  constructor(plot, spec, themes) {
    this.plot = plot;
    this.element = plot.querySelector(".chart");
    this.drawing = plot.querySelector(".drawing");
    this.spec = spec;
    this.themes = themes;
    this.view = null;
    this.begun = false;
    this.drawing.style.minHeight = `${this.height() + 60}px`;
    listValues(plot.querySelector(".points"), spec.data.values);
  }

  height() {
    const { height, data } = this.spec;
    return typeof height === "number" ? height : height.step * data.values.length;
  }

  async draw() {
    this.begun = true;
    if (this.view) this.view.finalize();
    const result = await vegaEmbed(this.drawing, this.fitted(), {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
      config: this.themes[dark.matches ? 1 : 0], tooltip: tell,
    });
    this.view = result.view;
    this.view.addEventListener("click", (_, item) => {
      const runs = item && item.datum && item.datum.runs;
      if (!runs) return;
      untell();
      this.element.focus({ preventScroll: true });  // where a reader comes back to
      location.hash = `r=${runs}`;
    });
    await this.view.runAsync();
    const over = this.drawing.querySelector("svg").clientWidth - this.element.clientWidth;
    const width = Math.max(this.least(), this.view.width() - over);
    if (over > 0 && width < this.view.width()) await this.view.width(width).runAsync();
    this.drawing.style.minHeight = "";
    this.element.dataset.drawn = "true";
  }

  least() {
    return (this.spec.usermeta || {}).least_width || 80;
  }

  /** The chart about as wide as its place, and no wider than it was made. */
  fitted() {
    const { series } = this.spec.usermeta || {};
    const names = series ? Object.keys(series) : this.spec.data.values.map((value) => value.name || "");
    const longest = Math.max(0, ...names.map((name) => name.length));
    const beside = Math.min(160, (series ? 5.8 : 6.5) * longest) + (series ? 34 : 20);
    const room = this.element.clientWidth - 60 - beside;
    return { ...this.spec, width: Math.max(this.least(), Math.min(this.spec.width, room)) };
  }
}

/** The values that a chart shows, one a row that runs are of (of a curve its last), with a link. */
function listValues(details, values) {
  const rows = new Map(values.map((value, place) => [value.runs || place, value]));
  const hidden = (key) => key === "Runs" || key[0] === key[0].toLowerCase() && !/^\d/.test(key);
  const keys = [...new Set([...rows.values()].flatMap(Object.keys))].filter((key) => !hidden(key));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const key of [...keys, "Records"]) {
      const heading = document.createElement("th");
      heading.scope = "col";
      heading.textContent = key;
      head.append(heading);
    }
    const body = table.createTBody();
    for (const value of rows.values()) {
      const row = body.insertRow();
      for (const key of keys) row.insertCell().textContent = value[key] ?? "";
      const cell = row.insertCell();
      const count = value.runs ? value.runs.split(",").length : 0;
      if (count) cell.append(link(`#r=${value.runs}`, count === 1 ? value.runs : `${count} records`));
    }
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    const caption = details.closest("figure").querySelector("figcaption").firstChild.textContent;
    scroll.setAttribute("aria-label", `${caption.trim()}: values and records`);
    scroll.append(table);
    details.append(scroll);
  });
}

/** Draws what is not drawn yet, when nothing else is to do: a page is printed with all its charts. */
function drawTheRest(charts) {
  const waiting = () => [...charts.values()].filter((chart) => !chart.begun && !chart.plot.hidden);
  const idle = window.requestIdleCallback || ((run) => setTimeout(run, 50));
  const next = () => {
    const [chart] = waiting();
    if (chart) chart.draw().then(() => idle(next));
  };
  idle(next);
  addEventListener("beforeprint", () => waiting().forEach((chart) => chart.draw()));
}

function showCharts(specs, themes) {
  const charts = new Map();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      const chart = charts.get(entry.target);
      if (!chart.begun) chart.draw();
    }
  }, { rootMargin: "200px" });
  for (const figure of document.querySelectorAll("figure[data-place]")) {
    const section = specs[figure.closest(".experiment").dataset.number];
    const plots = [...figure.querySelectorAll(".plot")];
    for (const plot of plots) {
      const chart = new Chart(plot, section[figure.dataset.place][plot.dataset.plot], themes);
      charts.set(chart.element, chart);
      seen.observe(chart.element);
    }
    const choice = figure.querySelector("figcaption select");
    if (choice) {
      choice.addEventListener("change", () => {
        for (const plot of plots) plot.hidden = plot.dataset.plot !== choice.value;
      });
    }
  }
  const again = () => {
    for (const chart of charts.values()) if (chart.view) chart.draw();
  };
  dark.addEventListener("change", again);
  let waiting = 0;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(again, 200);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") untell();
  });
  drawTheRest(charts);
}
