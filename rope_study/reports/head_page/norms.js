// The mean norm of each rotary pair of the chosen head, beside the mean over its layer.

const FRAME = { left: 44, right: 28, top: 22, bottom: 48, height: 220 };
const TICK_ROOM = 64; // px that two lines of a tick's label need

function showNorms() {
  const { layer, head } = state;
  const reads = keyHead(layer, head);
  const box = byId("norms");
  const columns = box.clientWidth > 620 ? 2 : 1;
  const width = Math.floor(box.clientWidth / columns) - (columns > 1 ? 8 : 0);
  box.replaceChildren(
    panel(`Queries of head ${head}`, data.q[layer], head, width),
    panel(`Keys of key-value head ${reads}`, data.k[layer], reads, width),
  );
}

// heads: norms [head][pair] of a layer; the largest of them all ends the scale.
function panel(title, heads, chosen, width) {
  const mine = heads[chosen];
  const mean = mine.map((_, i) => average(heads.map((head) => head[i])));
  const steps = niceSteps(Math.max(...heads.flat().map((norm) => norm ?? 0)) || 1);
  const top = steps.at(-1);
  const inner = width - FRAME.left - FRAME.right;
  const x = (pair) => FRAME.left + ((pair + 0.5) * inner) / mine.length;
  const y = (norm) => FRAME.height - FRAME.bottom
    - (norm / top) * (FRAME.height - FRAME.bottom - FRAME.top);
  const svg = draw(
    "svg",
    { width, height: FRAME.height, role: "img", "aria-label": `${title}: ${summary(mine, mean)}` },
    ...notRotated(x, inner / mine.length, y(top)),
    ...steps.flatMap((norm) => yTick(norm, y(norm), width - FRAME.right)),
    ...xTicks(x, mine.length, inner),
    line(mean, x, y, "mean"),
    line(mine, x, y, "mine"),
    ...dots(mine, x, y),
    ...mine.map((norm, i) => hint(i, norm, mean[i], x(i), inner / mine.length)),
  );
  return make("figure", {}, make("figcaption", {}, title), svg);
}

function average(values) {
  const found = values.filter((value) => value !== null);
  return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : null;
}

// 0 up to at least `largest` in three to five round steps.
function niceSteps(largest) {
  const unit = 10 ** Math.floor(Math.log10(largest));
  const step = [0.2, 0.25, 0.5, 1, 2, 2.5].map((n) => n * unit).find((n) => n * 4 >= largest);
  return [...Array(Math.ceil(largest / step - 1e-9) + 1).keys()].map((n) => n * step);
}

const short = (number, digits = 2) => String(Number(number.toPrecision(digits)));
const known = (norm) => (norm === null ? "not known" : short(norm, 3));

function frequency(pair) {
  const found = data.frequencies[state.layer][pair];
  if (found === null) return "frequency not known";
  return found === 0 ? "not rotated" : `${short(found)} rad/token`;
}

const described = (pair, norm, mean) =>
  `pair ${pair}, ${frequency(pair)}: ${known(norm)} (mean of the layer ${known(mean)})`;

function summary(mine, mean) {
  const largest = mine.indexOf(Math.max(...mine.map((norm) => norm ?? 0)));
  return `${mine.length} pairs, the largest is ${described(largest, mine[largest], mean[largest])}`;
}

// A line breaks where a norm is not known.
function line(norms, x, y, className) {
  let pen = "M";
  const path = norms.map((norm, i) => {
    if (norm === null) return (pen = "M"), "";
    const point = `${pen}${x(i).toFixed(1)} ${y(norm).toFixed(1)}`;
    pen = "L";
    return point;
  });
  return draw("path", { class: className, d: path.join("") });
}

function dots(norms, x, y) {
  if (norms.length > 40) return [];
  return norms.map((norm, i) => norm === null
    ? "" : draw("circle", { class: "mine", cx: x(i), cy: y(norm), r: 3 }));
}

// What a reader sees who points at a pair.
function hint(pair, norm, mean, middle, width) {
  const height = FRAME.height - FRAME.bottom - FRAME.top;
  const area = { class: "hint", x: middle - width / 2, y: FRAME.top, width, height };
  return draw("rect", area, draw("title", {}, described(pair, norm, mean)));
}

function yTick(norm, y, end) {
  return [
    draw("line", { class: "rule", x1: FRAME.left, x2: end, y1: y, y2: y }),
    draw("text", { x: FRAME.left - 6, y: y + 4, "text-anchor": "end" }, short(norm)),
  ];
}

function xTicks(x, pairs, inner) {
  const frequencies = data.frequencies[state.layer];
  const areKnown = frequencies.every((found) => found !== null);
  const count = Math.max(2, Math.min(pairs, Math.floor(inner / TICK_ROOM), 6));
  const at = [...Array(count).keys()].map((i) => Math.round((i * (pairs - 1)) / (count - 1)));
  const base = FRAME.height - FRAME.bottom;
  const label = (text, at, below) =>
    draw("text", { x: at, y: base + below, "text-anchor": "middle" }, text);
  const ticks = [...new Set(at)].flatMap((pair) => [
    label(String(pair), x(pair), 15),
    areKnown ? label(short(frequencies[pair]), x(pair), 28) : "",
  ]);
  const title = areKnown ? "rotary pair, fastest first; radians per token"
    : "rotary pair (frequencies not known)";
  return [...ticks, label(title, FRAME.left + inner / 2, 43)];
}

// A band behind each run of pairs that do not turn, and the words above the first.
function notRotated(x, width, top) {
  const still = data.frequencies[state.layer].map((found) => found === 0);
  const starts = still.flatMap((is, i) => (is && !still[i - 1] ? [i] : []));
  return starts.flatMap((start, n) => {
    const found = still.indexOf(false, start);
    const end = found < 0 ? still.length : found;
    const left = x(start) - width / 2;
    const right = x(end - 1) + width / 2;
    const height = FRAME.height - FRAME.bottom - top;
    const atLeft = start === 0;
    const anchor = { x: atLeft ? left : right, "text-anchor": atLeft ? "start" : "end" };
    return [
      draw("rect", { class: "still", x: left, y: top, width: right - left, height }),
      n ? "" : draw("text", { ...anchor, y: top - 6, class: "still-label" }, "not rotated"),
    ];
  });
}
