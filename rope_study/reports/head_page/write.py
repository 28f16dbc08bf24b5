"""Puts the page together: template, style, scripts and data in one HTML file."""

import json
import os
from collections.abc import Mapping, Sequence

import xarray

from rope_study.files import write_atomically
from rope_study.files.paths import to_path
from rope_study.reports import html
from rope_study.reports.head_page.contents import contents

PACKAGE = "rope_study.reports.head_page"
# One script, in this order.
SCRIPTS = ("failure.js", "state.js", "overview.js", "norms.js", "attention.js", "start.js")


def write_page(
    path: str | os.PathLike,
    *,
    title: str,
    facts: Mapping[str, object],
    usage: xarray.Dataset,
    named: xarray.Dataset,
    maps: Sequence[xarray.DataArray],
) -> None:
    """Writes the page, whole or not at all.

    Layers may have fewer heads or pairs than the largest; they end in NaN, as probes give them.

    Args:
      path: the HTML file; its folder is made where missing.
      title: its heading.
      facts: label -> value, shown as key facts.
      usage: of probes.frequency_usage: mean 2-norm q[layer, head, pair] and
        k[layer, kv_head, pair], with inverse_frequency[layer, pair] in rad/token
        (0: not rotated, NaN: not known).
      named: of probes.name_heads: name[layer, head], score[layer, head] and
        scores[layer, head, kind].
      maps: for each text the weights [layer, head, query, key], in [0, 1], with the labels of
        tokens as coordinates query_token and key_token; attrs may have "text", a short label.

    Raises:
      UserError: they do not fit each other, or a weight is none.
    """
    body = html.fill(
        html.read("template.html", PACKAGE),
        title=html.escape(title),
        facts=html.facts(facts),
        data=_as_json(contents(usage, named, maps)),
    )
    script = "".join(html.read(name, PACKAGE) for name in SCRIPTS)
    write_atomically(to_path(path), html.page(title, body, html.read("style.css", PACKAGE), script))


def _as_json(data: dict) -> str:
    """JSON that cannot end the element it stands in, whatever the labels of tokens are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")
