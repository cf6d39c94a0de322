"use strict";
/* The report: every table, filter, chart and record, once the page is there. */

const data = JSON.parse(document.getElementById("data").textContent);
const allRecords = new Records(data);
const grids = [];
for (const form of document.querySelectorAll("form.filters[data-for]")) {
  if (form.dataset.for === "records") {
    grids.push(listRecords(allRecords, document.getElementById("all-records"), form));
  } else {
    const tables = document.getElementById(form.dataset.for).querySelectorAll("table.grid");
    const own = [...tables].map(Grid.of);
    obey(form, own);
    grids.push(...own);
  }
}
showCharts(data.charts, data.themes);
watch(grids);
followHash(allRecords);
