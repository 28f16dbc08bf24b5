"""Made-up heads with labels that try to break out, the pages, and what they hold."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from rope_study.probes.head_patterns import KINDS
from rope_study.reports import study
from rope_study.reports.head_page import write_page

LAYERS, HEADS, KV_HEADS, PAIRS, TOKENS = 3, 4, 2, 6, 12
LONG = 60  # tokens of the second text
WIDTHS = (480, 960)  # of the report's figures, in CSS pixels
HOSTILE = [
    "</script><script>window.broken=1</script>",
    "<!--",
    '"',
    "'",
    "&amp;",
    "\u2028",
    "<0x0A>",
]
HOSTILE += ["\\", "▁日本", "</title><b>", "\n", "\u202e"]


def make_usage(layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, pairs=PAIRS) -> xr.Dataset:
    rng = np.random.default_rng(0)
    frequencies = np.tile(10_000.0 ** (-np.arange(pairs) / pairs), (layers, 1))
    frequencies[:, -pairs // 3 :] = 0
    by_pair = ("layer", "pair")
    return xr.Dataset(
        {
            "q": (("layer", "head", "pair"), rng.uniform(1, 9, (layers, heads, pairs))),
            "k": (("layer", "kv_head", "pair"), rng.uniform(1, 9, (layers, kv_heads, pairs))),
        },
        coords={"inverse_frequency": (by_pair, frequencies), "cycles": (by_pair, frequencies)},
    )


def make_named(layers=LAYERS, heads=HEADS) -> xr.Dataset:
    scores = np.random.default_rng(1).uniform(0, 0.6, (layers, heads, len(KINDS)))
    scores[1, 1, KINDS.index("previous")] = 0.9
    scores[1, 2, KINDS.index("sink")] = 0.95
    best = scores.max(-1)
    name = np.where(best > 0.5, np.array(KINDS, object)[scores.argmax(-1)], "mixed")
    by_head = ("layer", "head")
    return xr.Dataset(
        {"name": (by_head, name), "score": (by_head, best), "scores": ((*by_head, "kind"), scores)},
        coords={"kind": np.array(KINDS, object)},
        attrs={"window": 8, "threshold": 0.5},
    )


def make_map(labels=HOSTILE, layers=LAYERS, heads=HEADS, seed=2, **attrs) -> xr.DataArray:
    T = len(labels)
    logits = np.random.default_rng(seed).normal(0, 2, (layers, heads, T, T))
    weights = np.exp(logits) * np.tri(T)
    tokens = np.array(labels, object)
    return xr.DataArray(
        (weights / weights.sum(-1, keepdims=True)).astype(np.float32),
        dims=("layer", "head", "query", "key"),
        coords={"query_token": ("query", tokens), "key_token": ("key", tokens)},
        attrs=attrs,
    )


def make_page(folder: Path, **changes) -> Path:
    arguments = {
        "title": "Heads & <i>more</i>",
        "facts": {"model": "a <b>model</b>", "parameters": 1_234_567},
        "usage": make_usage(),
        "named": make_named(),
        "maps": [
            make_map(text="a </option> text"),
            make_map([f"t{i}" for i in range(LONG)], seed=3),
        ],
    }
    path = folder / "new" / "heads.html"
    write_page(path, **arguments | changes)
    return path


def make_report(folder: Path) -> Path:
    row = {"name": "rope()", "perplexity": 4.5, "loss": 1.5, "difference": None}
    results = {"encodings": [row], "facts": {"seed": 0}, "captions": {"wide": "A caption"}}
    narrow, wide = (Figure((width / 96, 2)) for width in WIDTHS)
    path = folder / "report.html"
    study.write_report(path, results, {"narrow_p0.75": narrow, "wide": wide})
    return path


class _Parser(HTMLParser):
    """Tags, and the text of scripts, as a browser would find them."""

    def __init__(self):
        super().__init__()
        self.scripts, self.tags, self._inside = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


def parse(page: str) -> tuple[list[tuple[str, dict]], list[str]]:
    """The page's tags with their attributes, and the text of its scripts."""
    parser = _Parser()
    parser.feed(page)
    return parser.tags, parser.scripts


def read(path: Path) -> dict:
    """The data that the page holds."""
    return json.loads(parse(path.read_text(encoding="utf-8"))[1][0])


def stored_weights(page_data: dict, text: int, layer: int, head: int) -> np.ndarray:
    stored = page_data["texts"][text]
    levels = np.frombuffer(base64.b64decode(stored["weights"][layer][head]), np.uint8)
    return levels.reshape(len(stored["queries"]), len(stored["keys"])) / 255
