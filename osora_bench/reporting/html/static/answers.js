"use strict";
/* Answers: one set at a time, filtered, twenty questions a page. */

const SHOWN = 20;
const sets = JSON.parse(document.getElementById("data").textContent).sets;
const form = document.getElementById("answer-filters");
const control = (id) => document.getElementById(id);
let shownPage = 0;

const right = (side) => side.marks.includes("right");
const differs = (side) => side.corrected !== null && side.corrected !== right(side);

const BOTH = {
  ab: (a, b) => right(a) && !right(b),
  ba: (a, b) => !right(a) && right(b),
  same: (a, b) => right(a) === right(b),
  other: (a, b) => a.output !== b.output,
};

/** The questions that the choices leave. */
function chosen() {
  const wanted = [...form.querySelectorAll("[data-side]")].map((select) => select.value);
  const both = control("both") ? control("both").value : "";
  const looked = control("text").value.trim().toLowerCase();
  return sets[control("set").value].questions.filter((question) =>
    wanted.every((mark, i) => !mark ||
      (mark === "differs" ? differs(question.sides[i]) : question.sides[i].marks.includes(mark))) &&
    (!both || BOTH[both](...question.sides)) &&
    (!looked || [question.prompt, ...question.sides.map((side) => side.output)]
      .some((text) => text.toLowerCase().includes(looked))));
}

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function answerOf(side, letter) {
  const box = element("div", undefined, `answer-box ${right(side) ? "right" : "wrong"}`);
  const marks = side.marks.join(", ");
  box.append(element("h3", letter ? `${letter}: ${marks}` : marks));
  const output = element("pre", side.output || "(nothing)");
  output.tabIndex = 0;
  const read = side.read === null ? "nothing was read" : `read: ${side.read}`;
  box.append(output, element("p", read, "muted"));
  if (differs(side)) box.append(element("p", `corrected: ${side.corrected ? "right" : "wrong"}`));
  if (side.unjudged) box.append(element("p", `not judged: ${side.unjudged}`));
  return box;
}

function questionOf(question) {
  const article = element("article", undefined, "question-box");
  article.append(element("h2", `Question ${question.position}`));
  const prompt = element("pre", question.prompt);
  prompt.tabIndex = 0;
  const answers = element("div", undefined, "answer-boxes");
  const letters = question.sides.length > 1 ? "AB" : "";
  answers.append(...question.sides.map((side, i) => answerOf(side, letters[i])));
  article.append(prompt, answers);
  return article;
}

function show() {
  const questions = chosen();
  const pages = Math.max(1, Math.ceil(questions.length / SHOWN));
  shownPage = Math.min(shownPage, pages - 1);
  const first = shownPage * SHOWN;
  const part = questions.slice(first, first + SHOWN);
  control("questions").replaceChildren(...part.map(questionOf));
  form.querySelector("output").textContent = `${questions.length} questions`;
  document.querySelector(".where").textContent =
    part.length ? `${first + 1} to ${first + part.length} of ${questions.length}` : "none";
  document.querySelector(".before").disabled = shownPage === 0;
  document.querySelector(".after").disabled = shownPage >= pages - 1;
}

function turn(step) {
  shownPage += step;
  show();
  scrollTo(0, 0);
}

form.addEventListener("input", () => {
  shownPage = 0;
  show();
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => {
  shownPage = 0;
  show();
}));
document.querySelector(".before").addEventListener("click", () => turn(-1));
document.querySelector(".after").addEventListener("click", () => turn(1));
show();
