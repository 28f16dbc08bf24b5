// The attention of the chosen head over the tokens of a text: a cell for each query and key.

// matplotlib's cividis at nine even steps: grows in lightness, for colour-blind readers as well.
const CIVIDIS = ["00224e", "1a386f", "434e6c", "61656f", "7d7c78", "9a9376", "bbad6d", "ddc858",
  "fee838"].map((colour) => [0, 2, 4].map((i) => parseInt(colour.slice(i, i + 2), 16)));
const CELL = { least: 10, most: 20 }; // px; below the least, labels of tokens would overlap
const LONGEST = 12; // characters of a label at the axes; the line above has them all
const cell = { query: 0, key: 0 };
let shown = null; // { text, weights: Uint8Array[queries * keys], size, gutter } of what is drawn

// weight: in [0, 1]
function colour(weight) {
  const at = weight * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return CIVIDIS[below].map((c, i) => c + (at - below) * (CIVIDIS[below + 1][i] - c));
}

const weightsOf = [...Array(256).keys()].map((level) => level / 255);
const COLOURS = { even: weightsOf.map(colour), weak: weightsOf.map((w) => colour(Math.sqrt(w))) };
const colours = () => (byId("weak").checked ? COLOURS.weak : COLOURS.even);

function showAttention() {
  const text = data.texts[state.text];
  const base64 = text.weights[state.layer][state.head];
  const weights = Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));
  const map = byId("map");
  const gutter = widest([...text.queries, ...text.keys]) + 10;
  const room = (map.parentElement.clientWidth - gutter - 4) / text.keys.length;
  const size = Math.max(CELL.least, Math.min(CELL.most, Math.floor(room)));
  shown = { text, weights, size, gutter };
  byId("map-title").textContent = `Attention over ${text.queries.length} tokens of`
    + ` “${readable(text.label)}”`;
  paint(map.querySelector("canvas"));
  paintScale();
  map.querySelector("svg")?.remove();
  map.append(labels());
  point(Math.min(cell.query, text.queries.length - 1), Math.min(cell.key, text.keys.length - 1));
}

function cut(label) {
  const characters = [...readable(label)];
  return characters.length > LONGEST ? `${characters.slice(0, LONGEST - 1).join("")}…`
    : characters.join("");
}

function widest(tokens) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `bold ${getComputedStyle(byId("map")).font}`; // as marked labels are
  return Math.ceil(Math.max(...tokens.map((token) => pen.measureText(cut(token)).width)));
}

// One pixel a cell; the style enlarges it without blurring.
function paint(canvas) {
  const { text, weights, size, gutter } = shown;
  canvas.width = text.keys.length;
  canvas.height = text.queries.length;
  const image = new ImageData(canvas.width, canvas.height);
  weights.forEach((level, i) => {
    if (level || !comesLater(i)) image.data.set([...colours()[level], 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.style.width = `${canvas.width * size}px`;
  canvas.style.height = `${canvas.height * size}px`;
  byId("map").style.padding = `${gutter}px 2px 2px ${gutter}px`;
}

const comesLater = (i) => i % shown.text.keys.length > Math.floor(i / shown.text.keys.length);

function labels() {
  const { text, size, gutter } = shown;
  const width = gutter + text.keys.length * size;
  const height = gutter + text.queries.length * size;
  const middle = (i) => gutter + (i + 0.5) * size;
  const of = (tokens, axis, place) => tokens.map((token, i) => {
    return draw("text", { ...place(middle(i)), "data-axis": axis, "data-i": i }, cut(token));
  });
  const end = gutter - 5;
  const svg = { width: width + 2, height: height + 2, "aria-hidden": true };
  return draw(
    "svg", svg,
    draw("rect", { class: "of-query", x: gutter, width: text.keys.length * size, height: size }),
    draw("rect", { class: "of-key", y: gutter, height: text.queries.length * size, width: size }),
    ...of(text.queries, "query", (y) => ({ x: end, y: y + 3, "text-anchor": "end" })),
    ...of(text.keys, "key", (x) => ({ transform: `translate(${x + 3} ${end}) rotate(-90)` })),
  );
}

// Marks one cell, and says which tokens it joins and how strongly.
function point(query, key) {
  Object.assign(cell, { query, key });
  const { text, weights, size, gutter } = shown;
  const svg = byId("map").querySelector("svg");
  svg.querySelector(".of-query").setAttribute("y", gutter + query * size);
  svg.querySelector(".of-key").setAttribute("x", gutter + key * size);
  svg.querySelectorAll(".marked").forEach((label) => label.classList.remove("marked"));
  for (const [axis, i] of Object.entries(cell)) {
    svg.querySelector(`[data-axis="${axis}"][data-i="${i}"]`).classList.add("marked");
  }
  const weight = (weights[query * text.keys.length + key] / 255).toFixed(2);
  byId("readout").replaceChildren(
    `query ${query} `, make("bdi", {}, readable(text.queries[query])),
    ` → key ${key} `, make("bdi", {}, readable(text.keys[key])),
    ": ", make("strong", {}, key > query && weight === "0.00" ? "comes later" : weight),
  );
}

// Where the eye starts: what the last token reads most.
function pointAtStrongest() {
  const { text, weights } = shown;
  const query = text.queries.length - 1;
  const row = weights.slice(query * text.keys.length);
  point(query, row.indexOf(Math.max(...row)));
}

function pointByPointer(event) {
  const box = byId("map").getBoundingClientRect();
  const { text, size, gutter } = shown;
  const key = Math.floor((event.clientX - box.left - gutter) / size);
  const query = Math.floor((event.clientY - box.top - gutter) / size);
  if (text.keys[key] !== undefined && text.queries[query] !== undefined) point(query, key);
}

function pointByKey(event) {
  const { query, key } = cell;
  const target = {
    ArrowUp: [query - 1, key],
    ArrowDown: [query + 1, key],
    ArrowLeft: [query, key - 1],
    ArrowRight: [query, key + 1],
    Home: [query, 0],
    End: [query, Math.min(query, shown.text.keys.length - 1)],
  }[event.key];
  if (!target || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const [row, column] = target;
  if (shown.text.queries[row] !== undefined && shown.text.keys[column] !== undefined) {
    point(row, column);
    intoView();
  }
}

// Keeps the marked cell in sight where the map scrolls.
function intoView() {
  byId("map").querySelectorAll(".marked").forEach((label) => {
    label.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

// The scale is even in weight; what changes with the choice of colours is where they lie on it.
function paintScale() {
  const canvas = document.querySelector("#scale canvas");
  canvas.width = 256;
  const image = new ImageData(256, 1);
  colours().forEach((rgb, level) => image.data.set([...rgb, 255], 4 * level));
  canvas.getContext("2d").putImageData(image, 0, 0);
}
