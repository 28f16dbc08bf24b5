// The grid of all heads by kind, and the chosen head's name and scores.

const MOST_BESIDE = 16; // columns of the grid that leave room beside it; with more it lies on top

// Two letters, as kinds share their first.
const initials = (kind) => kind[0].toUpperCase() + kind.slice(1, 2);
const nameOf = (layer, head) => `${data.name[layer][head]} (${percent(data.score[layer][head])})`;
const percent = (score) => (score === null ? "–" : score.toFixed(2));

function fillOverview() {
  const columns = Math.max(...data.q.map((heads) => heads.length));
  document.body.classList.toggle("many-heads", columns > MOST_BESIDE);
  const numbers = [...Array(columns).keys()];
  const grid = byId("grid");
  grid.replaceChildren(
    make("thead", {}, make("tr", {}, make("td"), ...numbers.map((n) => header("col", n)))),
    make("tbody", {}, ...data.q.map((_, layer) => row(layer))),
  );
  grid.addEventListener("click", (event) => chooseCell(event.target.closest("[data-head]")));
  grid.addEventListener("keydown", moveInGrid);
  fillLegend();
}

const header = (scope, number) => make("th", { scope }, String(number));

function row(layer) {
  const cells = data.q[layer].map((_, head) => {
    const kind = data.name[layer][head];
    const label = `layer ${layer}, head ${head}: ${nameOf(layer, head)}`;
    const attributes = { role: "gridcell", "aria-label": label, title: label, "data-kind": kind };
    return make("td", { ...attributes, "data-layer": layer, "data-head": head }, initials(kind));
  });
  return make("tr", {}, header("row", layer), ...cells);
}

function fillLegend() {
  const names = data.name.flat();
  const kinds = [...new Set([...data.kinds, "mixed", ...names])];
  const entries = kinds.map((kind) => {
    const box = make("span", { class: "box", "data-kind": kind }, initials(kind));
    const count = names.filter((name) => name === kind).length;
    const words = make("span", {}, `${kind}: ${count}`);
    return make("li", {}, box, words, make("span", { class: "meaning" }, meaningOf(kind)));
  });
  byId("legend").replaceChildren(...entries);
  byId("kinds-help").textContent = "A score is the meaning in numbers, from 0 to 1. Where the score"
    + ` of diagonal, previous or sink is above ${percent(data.threshold)}, it names the head,`
    + " otherwise the largest of the others does, if it is above that.";
}

const meaningOf = (kind) => (kind === "mixed" ? `no score above ${percent(data.threshold)}`
  : data.meanings[data.kinds.indexOf(kind)] ?? "");

const cellOf = (layer, head) =>
  document.querySelector(`#grid [data-layer="${layer}"][data-head="${head}"]`);

function chooseCell(cell) {
  if (!cell) return;
  choose({ layer: Number(cell.dataset.layer), head: Number(cell.dataset.head) });
  cellOf(state.layer, state.head).focus();
}

function moveInGrid(event) {
  const { layer, head } = state;
  const target = {
    ArrowUp: [layer - 1, head],
    ArrowDown: [layer + 1, head],
    ArrowLeft: [layer, head - 1],
    ArrowRight: [layer, head + 1],
    Home: [layer, 0],
    End: [layer, headsOf(layer) - 1],
  }[event.key];
  if (!target || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  chooseCell(cellOf(...target));
}

// Only the chosen head is a stop of the tab key; the arrow keys reach the others.
function showOverview() {
  const chosen = cellOf(state.layer, state.head);
  for (const cell of document.querySelectorAll("#grid [data-head]")) {
    cell.setAttribute("aria-selected", cell === chosen);
    cell.tabIndex = cell === chosen ? 0 : -1;
  }
  reveal(chosen);
}

// Scrolls the grid to the cell, and only the grid: the reader may be looking at something below.
function reveal(cell) {
  const box = byId("grid").parentElement;
  const seen = box.getBoundingClientRect();
  const { left, right, top, bottom, height } = cell.getBoundingClientRect();
  const room = 2 * height; // for neighbours, and for the axes that lie over the edges
  const beyond = (before, after) => Math.min(before, 0) + Math.max(after, 0);
  box.scrollTop += beyond(top - room - seen.top, bottom + room - seen.bottom);
  box.scrollLeft += beyond(left - room - seen.left, right + room - seen.right);
}

function showHead() {
  const { layer, head } = state;
  const kind = data.name[layer][head];
  const attributes = { class: "box", "data-kind": kind, "aria-hidden": true };
  const box = make("span", attributes, initials(kind));
  byId("head-title").replaceChildren(
    box, ` Layer ${layer}, head ${head}: `, make("strong", {}, nameOf(layer, head)),
  );
  byId("scores").replaceChildren(
    ...data.kinds.map((each, i) => scoreBar(each, data.scores[layer][head][i])),
  );
}

function scoreBar(kind, score) {
  const bar = make("span", { class: "bar", "data-kind": kind });
  bar.style.width = `${100 * (score ?? 0)}%`;
  const track = make("span", { class: "track", "aria-hidden": true }, bar);
  const words = make("span", { title: meaningOf(kind) }, kind);
  return make("li", {}, words, track, make("span", {}, percent(score)));
}
