"use strict";
/* A page of what still runs: read again from its file every few seconds, as its reader left it, unless
   it is paused or somebody is in the middle of something. The state lives in the history entry. */

const MARKS = "main h2, main h3, main figure";

/** What a reader can choose, by a name that stays when the page is written anew. */
function choices() {
  const named = new Map();
  for (const control of document.querySelectorAll("form.filters [data-facet]")) {
    named.set(`${control.form.dataset.for}/${control.dataset.facet}`, control);
  }
  for (const control of document.querySelectorAll("figcaption select")) {
    const place = control.closest("figure").dataset.place;
    named.set(`${control.closest(".experiment").id}/chart ${place}`, control);
  }
  return named;
}

function nameOf(grid) {
  return grid.table.getAttribute("aria-labelledby");
}

const lists = () => [...document.querySelectorAll("details.points")];
const controlsInOrder = () => [...document.querySelectorAll("a[href], button, summary, [tabindex]")];

/** The last heading or chart that begins above the edge, and how far above. */
function sight() {
  const tops = [...document.querySelectorAll(MARKS)].map((mark) => mark.getBoundingClientRect().top);
  const mark = Math.max(0, tops.findLastIndex((top) => top <= 0));
  return { mark, top: tops[mark] };
}

function stateOf(grids, paused) {
  return {
    paused,
    chosen: [...choices()].map(([name, control]) => [name, control.value]),
    grids: grids.map((grid) => [nameOf(grid), grid.sorted, grid.page]),
    sight: scrollY ? sight() : null,
    opened: lists().map((list) => list.open),
    focus: controlsInOrder().indexOf(document.activeElement),
  };
}

function restore(state, grids) {
  const controls = choices();
  for (const [name, value] of state.chosen) {
    const control = controls.get(name);
    if (!control || control.value === value) continue;
    control.value = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
    control.dispatchEvent(new Event("change", { bubbles: true }));
  }
  for (const [name, sorted, page] of state.grids) {
    const grid = grids.find((one) => nameOf(one) === name);
    if (grid) grid.stand(sorted, page);
  }
  lists().forEach((list, place) => (list.open = Boolean(state.opened[place])));
  if (state.focus >= 0) (controlsInOrder()[state.focus] || document.body).focus({ preventScroll: true });
  const marks = document.querySelectorAll(MARKS);
  if (state.sight && marks[state.sight.mark]) {
    const top = marks[state.sight.mark].getBoundingClientRect().top;
    scrollBy({ top: top - state.sight.top, behavior: "instant" });
  }
}

/** Whether a reading now would take something from the reader. */
function busy() {
  const at = document.activeElement;
  return document.querySelector("dialog[open]") !== null ||
    !document.getSelection().isCollapsed || at.matches("input, select");
}

function watch(grids) {
  const kept = history.state && history.state.watch;
  if (kept) restore(kept, grids);
  const bar = document.querySelector(".watch");
  if (!bar) return;
  history.scrollRestoration = "manual";
  const [button, told] = [bar.querySelector("button"), bar.querySelector("span")];
  const seconds = Number(bar.dataset.seconds);
  let paused = Boolean(kept && kept.paused);
  const tell = () => {
    button.textContent = paused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
    told.textContent = paused ? "This page stays as it is." : `Read again every ${seconds} s.`;
  };
  const keep = () => history.replaceState({ watch: stateOf(grids, paused) }, "");
  button.addEventListener("click", () => {
    paused = !paused;
    tell();
    keep();
  });
  tell();
  setInterval(() => {
    if (paused || busy()) return;
    keep();
    location.reload();
  }, 1000 * seconds);
}
