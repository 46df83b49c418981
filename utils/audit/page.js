"use strict";
const MARKS = ["accept", "reject", "look again"];
const KEYS = { a: "accept", r: "reject", l: "look again", u: "" };
const audit = document.documentElement.dataset.audit;
const find = id => document.getElementById(id);
const body = document.querySelector("tbody");
const heads = [...document.querySelectorAll("th")];
const rows = [...body.rows]; // worst first, however they are sorted on the page
const large = find("large");
let current = null;
let kept = true;

// --- Marks: each has a key of its own, so that two pages of one audit do not overwrite each other's ----------------

const keyOf = row => `gsd-net audit ${audit} ${row.dataset.image}`;
const markOf = row => row.dataset.mark;

function stored(row) {
  try {
    const mark = localStorage.getItem(keyOf(row));
    return MARKS.includes(mark) ? mark : "";
  } catch {
    notKept();
    return "";
  }
}

function notKept() {
  kept = false;
  find("unkept").hidden = false;
}

function setMark(row, mark) {
  try {
    if (mark) localStorage.setItem(keyOf(row), mark);
    else localStorage.removeItem(keyOf(row));
  } catch {
    notKept();
  }
  showMark(row, mark);
}

function showMark(row, mark) {
  row.dataset.mark = mark;
  for (const button of row.querySelectorAll(".marks button"))
    button.setAttribute("aria-pressed", button.dataset.mark === mark);
}

// --- What is shown -------------------------------------------------------------------------------------------------

const visible = () => [...body.rows].filter(row => !row.hidden);

function filter() {
  const text = find("search").value.trim().toLowerCase();
  const mark = find("filter").value;
  const most = find("most").value;
  for (const row of rows) {
    const score = row.dataset.score;
    row.hidden = !row.dataset.image.toLowerCase().includes(text)
      || (mark !== "all" && markOf(row) !== mark)
      || (most !== "" && (score === "" || Number(score) > Number(most)));
  }
  const counted = ["", ...MARKS].map(one => rows.filter(row => markOf(row) === one).length);
  find("counts").value = `${visible().length} of ${rows.length} shown; ${counted[1]} accepted, ${counted[2]} rejected, `
    + `${counted[3]} to look at again, ${counted[0]} without a mark`;
}

function choose(row, scroll = true) {
  const focused = document.activeElement?.closest("tbody tr");
  if (focused && focused !== row) document.activeElement.blur(); // or Enter would press a button of another row
  current?.removeAttribute("aria-current");
  current = row;
  if (!row) return large.close();
  row.setAttribute("aria-current", "true");
  if (scroll) row.scrollIntoView({ block: "nearest" });
  if (large.open) enlarge(row);
}

// The row that is shown ``step`` rows after ``row``, at most the last; without ``row`` the first.
function neighbour(row, step) {
  const shown = visible();
  const place = row ? shown.indexOf(row) + step : 0;
  return shown[Math.min(Math.max(place, 0), shown.length - 1)] ?? null;
}

// Mark a row, and with ``goOn`` choose the next. Where the filter hides what is to be chosen, a neighbour is.
function mark(row, value, goOn) {
  const shown = visible();
  const place = shown.indexOf(row);
  setMark(row, value);
  filter();
  const near = goOn ? [1, 0, -1] : [0, 1, -1];
  choose(near.map(step => shown[place + step]).find(one => one && !one.hidden) ?? null);
}

// A mark's button: pressed once more, it takes the mark away.
function pressed(row, button) {
  mark(row, markOf(row) === button.dataset.mark ? "" : button.dataset.mark, false);
}

// --- The enlarged pictures -----------------------------------------------------------------------------------------

function enlarge(row) {
  find("large-name").textContent = row.dataset.image;
  find("large-facts").textContent = row.dataset.facts;
  find("large-pictures").replaceChildren(...[...row.querySelectorAll("svg")].map(picture => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = picture.dataset.kind;
    figure.append(picture.cloneNode(true), caption);
    return figure;
  }));
  find("large-marks").replaceChildren(...row.querySelector(".marks").cloneNode(true).childNodes);
  if (!large.open) large.showModal();
}

// --- Export --------------------------------------------------------------------------------------------------------

const quoted = text => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function exported() {
  const lines = rows.map(row => [row.dataset.image, markOf(row), row.dataset.score, audit].map(quoted).join(","));
  return ["image,mark,score,audit", ...lines].map(line => `${line}\n`).join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "text/csv" }));
  link.download = "audit_marks.csv";
  link.click();
}

// --- Events --------------------------------------------------------------------------------------------------------

// A click sorts by that column; a second click turns the order round. Cells without a figure come last either way.
heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.key;
  const compare = (a, b) => head.dataset.kind === "text" ? a.localeCompare(b) : a - b;
  body.append(...[...body.rows].sort((a, b) =>
    key(a) === "" || key(b) === "" ? (key(a) === "") - (key(b) === "") : sign * compare(key(a), key(b))));
}));

body.addEventListener("click", event => {
  const row = event.target.closest("tr");
  const button = event.target.closest("button");
  if (button?.matches(".marks button")) return pressed(row, button);
  choose(row);
  if (button?.matches(".enlarge")) enlarge(row);
});

find("large-marks").addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) pressed(current, button);
});

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  const key = event.key.toLowerCase();
  const step = { arrowdown: 1, arrowright: 1, arrowup: -1, arrowleft: -1 }[key];
  const row = current && !current.hidden ? current : null;
  if (key in KEYS && row) mark(row, KEYS[key], true);
  else if (step) choose(neighbour(row, step));
  else if (key === "enter" && row && !event.target.matches("button")) enlarge(row);
  else if (key === "o") document.documentElement.classList.toggle("plain");
  else if (key === "/") find("search").focus();
  else return;
  event.preventDefault();
});

for (const [id, kind] of [["search", "input"], ["most", "input"], ["filter", "change"]])
  find(id).addEventListener(kind, () => {
    filter();
    if (!current || current.hidden) choose(neighbour(null, 0), false);
  });
find("export").addEventListener("click", save);
find("close").addEventListener("click", () => large.close());
large.addEventListener("click", event => { if (event.target === large) large.close(); });
addEventListener("storage", () => { rows.forEach(row => showMark(row, stored(row))); filter(); });
addEventListener("beforeunload", event => { if (!kept && rows.some(markOf)) event.preventDefault(); });

rows.forEach(row => showMark(row, stored(row)));
filter();
choose(neighbour(null, 0), false);
