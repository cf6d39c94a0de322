"use strict";
/* The report: every table, filter, chart and record, once the page is there. */

const data = JSON.parse(document.getElementById("data").textContent);
const allRecords = new Records(data);
for (const form of document.querySelectorAll("form.filters[data-for]")) {
  const section = document.getElementById(form.dataset.for);
  if (form.dataset.for === "records") listRecords(allRecords, document.getElementById("all-records"), form);
  else obey(form, [...section.querySelectorAll("table.grid")].map(Grid.of));
}
showCharts(data.charts, data.themes);
followHash(allRecords);
