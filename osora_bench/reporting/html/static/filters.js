"use strict";
/* A form of choices and a search, which some tables obey. */

/** Whether a line has the values that are chosen and the text that is looked for. */
function keeps(chosen, text) {
  const looked = text.toLowerCase();
  return (line) =>
    Object.entries(chosen).every(([facet, value]) =>
      !(facet in line.facets) || line.facets[facet] === value) &&
    (!looked || line.cells.some((cell) => cell.toLowerCase().includes(looked)));
}

function obey(form, grids) {
  const apply = () => {
    const chosen = {};
    let text = "";
    for (const control of form.querySelectorAll("[data-facet]")) {
      if (control.dataset.facet === "text") text = control.value.trim();
      else if (control.value) chosen[control.dataset.facet] = control.value;
    }
    let count = 0;
    for (const grid of grids) {
      grid.filter(keeps(chosen, text), chosen.method || "");
      count += grid.shown.length;
    }
    const any = text || Object.keys(chosen).length;
    form.querySelector("output").textContent = any ? `${count} lines` : "";
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
}

/** A choice for each facet that has more than one value, a search, and a button that shows all. */
function makeFilters(form, facets) {
  for (const [facet, values] of Object.entries(facets)) {
    if (values.length < 2) continue;
    const label = document.createElement("label");
    label.append(`${facet[0].toUpperCase()}${facet.slice(1)} `);
    const select = document.createElement("select");
    select.dataset.facet = facet;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value)));
    label.append(select);
    form.append(label);
  }
  const label = document.createElement("label");
  label.append("Contains ");
  const search = document.createElement("input");
  search.type = "search";
  search.dataset.facet = "text";
  label.append(search);
  const reset = document.createElement("button");
  reset.type = "reset";
  reset.textContent = "Show all";
  const output = document.createElement("output");
  output.className = "muted";
  output.setAttribute("aria-live", "polite");
  form.append(label, reset, output);
}
