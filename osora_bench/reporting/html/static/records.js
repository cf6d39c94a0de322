"use strict";
/* The records: a list of all, and each with everything that it holds. */

class Records {
  constructor(data) {
    this.pool = data.pool;
    this.records = data.records;
  }

  ids() {
    return Object.keys(this.records);
  }

  /** A record with its shared parts in their places. */
  whole(id) {
    const packed = this.records[id];
    const record = { ...packed, provenance: { ...packed.provenance } };
    for (const key of ["model", "method", "task", "eval", "trainer", "tuning", "experiments"]) {
      record[key] = this.pool[packed[key]];
    }
    for (const [key, value] of Object.entries(packed.provenance)) {
      if (typeof value === "number") record.provenance[key] = this.pool[value];
    }
    return record;
  }

  label(record) {
    const rank = record.method.rank === null ? "" : ` r=${record.method.rank}`;
    const seed = record.training === null ? "" : `, seed ${record.seed}`;
    return `${record.method.label}${rank}, ${record.model.label}, ${record.eval.label}${seed}`;
  }

  /** The mean of the sets' accuracies, in per cent; blank where there is none. */
  average(record) {
    const scores = Object.values(record.scores);
    if (!scores.length) return "";
    return (scores.reduce((sum, s) => sum + (100 * s.k) / s.n, 0) / scores.length).toFixed(2);
  }
}

const COLUMNS = ["Run", "Model", "Method", "Rank", "Task", "Suite", "Seed", "Rate", "Average",
  "Parameters", "Commit", "Finished", "Numerics"];
const NUMBERS = ["Rank", "Seed", "Rate", "Average", "Parameters"];
const IDENTIFIERS = ["Run", "Commit"];
const MOST_SHOWN = 200;

function kindOf(column) {
  return NUMBERS.includes(column) ? "number" : IDENTIFIERS.includes(column) ? "identifier" : "";
}

function recordLine(records, id) {
  const record = records.whole(id);
  const trains = record.training !== null;
  const code = record.provenance.code || {};
  const texts = [
    id, record.model.label, record.method.label, record.method.rank ?? "",
    trains ? record.task.label : "", record.eval.label, trains ? record.seed : "",
    trains ? record.trainer.learning_rate.toExponential().replace("e+0", "") : "",
    records.average(record), (record.parameters.trainable ?? "").toLocaleString("en"),
    (code.commit || "").slice(0, 7) + (code.dirty ? "+" : ""),
    (record.measured.finished || "").slice(0, 16).replace("T", " "),
    record.numerics === null ? "earlier" : record.numerics,
  ].map(String);
  const facets = { model: texts[1], method: texts[2], rank: texts[3], task: texts[4], suite: texts[5] };
  return { cells: texts, facets, row: () => recordRow(id, texts) };
}

function recordRow(id, texts) {
  const row = document.createElement("tr");
  texts.forEach((text, column) => {
    const cell = row.insertCell();
    cell.className = kindOf(COLUMNS[column]);
    if (column) cell.textContent = text;
    else cell.append(link(`#r=${id}`, id));
  });
  return row;
}

function link(href, text) {
  const made = document.createElement("a");
  made.href = href;
  made.textContent = text;
  return made;
}

function listRecords(records, table, form) {
  const heads = table.createTHead().insertRow();
  for (const column of COLUMNS) {
    const heading = document.createElement("th");
    heading.scope = "col";
    heading.textContent = column;
    heading.className = kindOf(column);
    heads.append(heading);
  }
  table.tHead.replaceChildren(heads);
  const lines = records.ids().map((id) => recordLine(records, id));
  const facets = {};
  for (const facet of ["model", "method", "task", "rank", "suite"]) {
    const values = [...new Set(lines.map((line) => line.facets[facet]))].filter(Boolean);
    facets[facet] = values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  }
  makeFilters(form, facets);
  const grid = new Grid(table, lines);
  obey(form, [grid]);
  return grid;
}

/* One record or several, over the page. */

function showRecords(records, ids) {
  const dialog = document.getElementById("record");
  const known = ids.filter((id) => id in records.records);
  const title = dialog.querySelector("h2");
  title.textContent = ids.length === 1 ? `Record ${ids[0]}` : `${ids.length} records`;
  const body = dialog.querySelector(".body");
  const shown = known.slice(0, MOST_SHOWN);
  body.replaceChildren(...shown.map((id) => recordDetails(records, id, known.length === 1)));
  if (shown.length < known.length) body.append(`The first ${shown.length} of ${known.length}.`);
  if (!known.length) body.textContent = "There is no such record on this page.";
  if (!dialog.open) dialog.showModal();
  title.focus();
  dialog.scrollTop = 0;
}

function recordDetails(records, id, open) {
  const record = records.whole(id);
  const details = document.createElement("details");
  details.open = open;
  const summary = document.createElement("summary");
  const average = records.average(record);
  summary.textContent = `${id}: ${records.label(record)}${average ? `: ${average} %` : ""}`;
  details.append(summary);
  const fill = () => {
    if (details.open && details.childElementCount === 1) details.append(...recordParts(record));
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

function recordParts(record) {
  const { code, versions, hardware, fingerprints, ...read } = record.provenance;
  const { loss, ...training } = record.training || {};
  const config = { model: record.model, method: record.method, task: record.task,
    eval: record.eval, trainer: record.trainer, seed: record.seed, tuning: record.tuning };
  const parts = [
    ["Scores", record.scores],
    ["Parameters", record.parameters],
    ["Measured", record.measured],
    ["Training", training],
    ["Training loss", loss && Object.fromEntries(loss.map(([step, value]) => [`step ${step}`, value]))],
    ["Left out", record.not_run],
    ["Forgetting", record.forgetting],
    ["Test questions in training rows", record.leakage],
    ["Code", { ...code, ...read, numerics_version: record.numerics ?? "earlier than this program's",
      experiments: record.experiments.join(", ") }],
    ["Hardware", hardware],
    ["Versions", versions],
    ["Files", fingerprints],
    ["Configuration", config],
  ];
  return parts.filter(([, value]) => value && Object.keys(value).length).map(([title, value]) => {
    const section = document.createElement("section");
    const heading = document.createElement("h3");
    heading.textContent = title;
    section.append(heading, valueList(value));
    return section;
  });
}

/** Names and values; what holds others is a list of its own. */
function valueList(value) {
  const list = document.createElement("dl");
  for (const [key, inner] of Object.entries(value)) {
    if (inner === null || inner === undefined) continue;
    const name = document.createElement("dt");
    const content = document.createElement("dd");
    name.textContent = key;
    if (typeof inner === "object" && Object.keys(inner).length) content.append(valueList(inner));
    else content.textContent = typeof inner === "object" ? "none" : String(inner);
    list.append(name, content);
  }
  return list;
}

function followHash(records) {
  const dialog = document.getElementById("record");
  const follow = () => {
    const match = /^#r=([\w,-]+)$/.exec(location.hash);
    if (match) showRecords(records, match[1].split(","));
    else if (dialog.open) dialog.close();
  };
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {  // the focus goes back to what had it, by itself
    const bare = location.pathname + location.search;
    if (location.hash.startsWith("#r=")) history.replaceState(history.state, "", bare);
  });
  addEventListener("hashchange", follow);
  follow();
}
