// What is chosen (layer, head, text), and the URL's hash that keeps it, so that a link opens it.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { ...data.first, text: 0 };

const byId = (id) => document.getElementById(id);
const headsOf = (layer) => data.q[layer].length;

// A key-value head serves as many heads as the others of its layer.
const keyHead = (layer, head) => Math.floor((head * data.k[layer].length) / headsOf(layer));

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// Children that are strings become text, whatever they hold: never markup.
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A number of the hash, or what holds now where it is missing or names nothing.
function asked(hash, name, count) {
  const text = hash.get(name) ?? "";
  return /^\d+$/.test(text) && Number(text) < count ? Number(text) : state[name];
}

function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  state.layer = asked(hash, "layer", data.q.length);
  state.head = Math.min(asked(hash, "head", headsOf(state.layer)), headsOf(state.layer) - 1);
  state.text = asked(hash, "text", data.texts.length);
}

function choose(change) {
  Object.assign(state, change);
  state.head = Math.min(state.head, headsOf(state.layer) - 1);
  // Replaced, not added: moving over twenty heads should not take twenty steps back.
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  show();
}

function show() {
  showControls();
  showOverview();
  showHead();
  showNorms();
  showAttention();
}

function showControls() {
  fillSelect("layer", data.q.map((_, layer) => String(layer)));
  fillSelect("head", data.q[state.layer].map((_, head) => String(head)));
  fillSelect("text", data.texts.map((text) => readable(text.label)));
}

function fillSelect(name, labels) {
  const select = byId(name);
  if (select.length !== labels.length) {
    select.replaceChildren(...labels.map((label, value) => make("option", { value }, label)));
  }
  select.value = state[name];
}

// Line ends and characters that cannot be seen are spelt out: they would break a label or hide it.
function readable(label) {
  return label
    .replaceAll("<0x0A>", "↵")
    .replace(/\r?\n/g, "↵")
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => {
      return `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    });
}
