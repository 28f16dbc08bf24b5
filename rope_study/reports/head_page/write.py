"""Puts the page together: template, style, scripts and data in one HTML file."""

import base64
import hashlib
import html
import json
import os
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import xarray

from rope_study.files import write_atomically
from rope_study.reports.head_page.contents import contents

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
    data = contents(usage, named, maps)
    style, script = _read("style.css"), "".join(_read(name) for name in SCRIPTS)
    page = string.Template(_read("template.html")).substitute(
        title=html.escape(title),
        facts="\n".join(_fact(label, value) for label, value in facts.items()),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_as_json(data),
    )
    write_atomically(Path(path), page)


def _read(name: str) -> str:
    return resources.files("rope_study.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's policy knows its own script by: any other does not run."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _as_json(data: dict) -> str:
    """JSON that cannot end the element it stands in, whatever the labels of tokens are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _fact(label: str, value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
    return f"<div><dt>{html.escape(str(label))}</dt><dd>{html.escape(text)}</dd></div>"
