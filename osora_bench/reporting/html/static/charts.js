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

class Chart {
  constructor(element, spec, themes) {
    this.element = element;
    this.spec = spec;
    this.themes = themes;
    this.view = null;
  }

  async draw() {
    if (this.view) this.view.finalize();
    const result = await vegaEmbed(this.element, this.fitted(), {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
      config: this.themes[dark.matches ? 1 : 0], tooltip: tell,
    });
    this.view = result.view;
    this.view.addEventListener("click", (_, item) => {
      const runs = item && item.datum && item.datum.runs;
      if (runs) location.hash = `r=${runs}`;
    });
    await this.view.runAsync();
  }

  /** The chart as wide as its place, and no wider than it was made. */
  fitted() {
    const data = [this.spec.data, ...this.spec.layer.map((layer) => layer.data || "")];
    const names = JSON.stringify(data).match(/"(series|name)":"[^"]*"/g);
    const longest = Math.max(0, ...(names || []).map((name) => name.length - 11));
    const room = this.element.clientWidth - 80 - Math.min(160, 6.5 * longest);
    const least = (this.spec.usermeta || {}).least_width || 140;
    return { ...this.spec, width: Math.max(least, Math.min(this.spec.width, room)) };
  }
}

function showCharts(specs, themes) {
  const charts = new Map();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      charts.get(entry.target).draw();
    }
  }, { rootMargin: "200px" });
  for (const figure of document.querySelectorAll("figure[data-place]")) {
    const section = specs[figure.closest(".experiment").dataset.number];
    const elements = [...figure.querySelectorAll(".chart")];
    for (const element of elements) {
      const spec = section[figure.dataset.place][element.dataset.plot];
      charts.set(element, new Chart(element, spec, themes));
      seen.observe(element);
    }
    const choice = figure.querySelector("figcaption select");
    if (choice) {
      choice.addEventListener("change", () => {
        for (const element of elements) element.hidden = element.dataset.plot !== choice.value;
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
}
