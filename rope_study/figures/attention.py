"""What heads attend to: Figs. 5, 7 and 14 to 16, the logits of Tables 3 to 5, and heads by kind.

Attention comes from probes.attention_map, logits by pair from probes.contributions and
probes.contribution_map, kinds of heads from probes.name_heads.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.figures.style import (
    BLUE,
    COLOUR_MAP,
    KIND_COLOURS,
    RED,
    SIGNED_MAP,
    as_text,
    label_pairs,
    new_figure,
)
from rope_study.probes import datasets

MOST_LABELS = 48  # tokens that can be read along an axis


@checked
def attention_patterns(maps: Mapping[str, xr.DataArray]) -> Figure:
    """Fig. 5, and Figs. 14 to 16: attention weights of heads on a text, a panel each.

    Args:
      maps: title -> attention[query, key], as probes.attention_map gives it.
    """
    datasets.check_made_by("probes.attention_map", *maps.values())
    columns = min(len(maps), 3)
    rows = math.ceil(len(maps) / columns)
    first = next(iter(maps.values()))
    side = max(4.6, 1.6 + 0.1 * min(first.sizes["query"], MOST_LABELS))  # inches
    figure = new_figure((side * columns + 0.8, side * rows + 0.6), f"Attention\n{_model(first)}")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    weights = ScalarMappable(Normalize(0, 1), COLOUR_MAP)
    for axes, (name, attention) in zip(panels, maps.items(), strict=False):
        _draw_map(axes, attention, weights)
        axes.set_title(as_text(f"{name}\n{_head(attention)}"), fontsize=10)
    for axes in panels[len(maps) :]:
        axes.remove()
    figure.colorbar(weights, ax=figure.axes, fraction=0.03, label="attention weight")
    return figure


@checked
def attention_by_band(
    attention: xr.DataArray, contribution: xr.DataArray, bands: Mapping[str, Sequence[int]]
) -> Figure:
    """Fig. 7: a head's attention, and what bands of rotary pairs add to its logits.

    Args:
      attention: [query, key] of probes.attention_map.
      contribution: [query, key, pair] of probes.contribution_map, of the same head and text.
      bands: title -> the rotary pairs of a band, counted from the fastest.
    """
    datasets.check_made_by("probes.attention_map", attention)
    datasets.check_made_by("probes.contribution_map", contribution)
    if not bands:
        raise UserError("there are no bands to draw", "bands")
    for name, pairs in bands.items():
        if not len(pairs) or max(pairs) >= contribution.sizes["pair"]:
            last = contribution.sizes["pair"] - 1
            raise UserError(f"bands[{name!r}]={pairs} must be of the pairs 0..{last}", "bands")
    sums = {
        name: contribution.isel(pair=list(pairs)).sum("pair", skipna=False)
        for name, pairs in bands.items()
    }
    columns = 1 + len(bands)
    figure = new_figure(
        (4.4 * columns + 1, 5.2), f"Logits by band: {_head(attention)}\n{_model(attention)}"
    )
    first, *rest = figure.subplots(1, columns)
    weights = ScalarMappable(Normalize(0, 1), COLOUR_MAP)
    _draw_map(first, attention, weights)
    first.set_title("attention", fontsize=10)
    figure.colorbar(weights, ax=first, fraction=0.05, label="attention weight")
    largest = max(float(np.abs(added).max()) for added in sums.values())
    logits = ScalarMappable(Normalize(-largest, largest), SIGNED_MAP)
    for axes, (name, added) in zip(rest, sums.items(), strict=True):
        _draw_map(axes, added, logits)
        axes.set_title(as_text(name), fontsize=10)
        axes.set_ylabel("")
    figure.colorbar(logits, ax=rest, fraction=0.05, label="added to q·k [before scaling]")
    return figure


@checked
def first_token_by_pair(contribution: xr.DataArray) -> Figure:
    """Fig. 7 and App. E.1: what each pair adds to logits on the first token, and on all others.

    Means over queries from the second on; of the others a mean over the keys that a query reads.
    A band that adds to the first token and takes from others sends a head to BOS.

    Args:
      contribution: [query, key, pair] of probes.contribution_map.
    """
    datasets.check_made_by("probes.contribution_map", contribution)
    rest = contribution.isel(query=slice(1, None))
    lines = {
        "first token": rest.isel(key=0).mean("query"),
        "other tokens": rest.isel(key=slice(1, None)).mean("key").mean("query"),
    }
    figure = new_figure(
        (7.5, 4.2), f"Logits by pair: {_head(contribution)}\n{_model(contribution)}"
    )
    axes = figure.subplots()
    styles = zip(lines.items(), (RED, BLUE), ("-", "--"), strict=True)
    for (name, line), colour, style in styles:
        label = f"{name}: {float(line.sum()):+.1f} in all"
        axes.plot(line, color=colour, linestyle=style, label=label)
    axes.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    label_pairs(axes, contribution.inverse_frequency.values[None], ticks=5)
    axes.set_ylabel("added to q·k [before scaling]")
    axes.legend(fontsize=9, handlelength=4)
    axes.grid(color="0.9")
    return figure


@checked
def logit_by_pair(contributions: xr.Dataset) -> Figure:
    """Tables 3 to 5: what each pair adds to one logit, beside its Cauchy-Schwarz bound.

    Args:
      contributions: of probes.contributions.
    """
    datasets.check_made_by("probes.contributions", contributions)
    of_logit = contributions.attrs  # a Dataset's method hides an attribute of the same name
    place = f"query {of_logit['query']}, key {of_logit['key']}"
    if "query_token" in of_logit:
        place += f": {of_logit['query_token']!r} on {of_logit['key_token']!r}"
    title = f"One logit by pair: {_head(contributions)}, {place}\n{_model(contributions)}"
    figure = new_figure((8, 4.2), title)
    axes = figure.subplots()
    pairs = np.arange(contributions.sizes["pair"])
    bound = f"bound: {contributions.logit_bound:.2f} in all"
    for sign in (1, -1):
        bars = {"color": "0.85", "width": 1, "label": bound if sign > 0 else None}
        axes.bar(pairs, sign * contributions.bound, **bars)
    added = f"added: {contributions.logit:.2f} in all"
    axes.bar(pairs, contributions.contribution, color=BLUE, width=0.7, label=added)
    axes.axhline(0, color="0.3", linewidth=0.8)
    label_pairs(axes, contributions.inverse_frequency.values[None], ticks=5)
    axes.set_ylabel("added to q·k [before scaling]")
    axes.legend(fontsize=9)
    return figure


@checked
def head_kinds(named: xr.Dataset) -> Figure:
    """What every head does, by layer and head: its kind's first two letters, and how sure that is.

    Args:
      named: of probes.name_heads.
    """
    datasets.check_made_by("probes.name_heads", named)
    names, scores = named.name.values, named.score.values
    layers, heads = names.shape
    size = (max(1 + 0.45 * heads, 6.5), 2.2 + 0.45 * layers)
    figure = new_figure(size, f"Heads by kind, and how sure that is\n{_model(named)}")
    axes = figure.subplots()
    for (layer, head), kind in np.ndenumerate(names):
        cell = {"facecolor": KIND_COLOURS[kind], "edgecolor": "white", "linewidth": 2}
        axes.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, **cell))
        text = f"{kind[:2]}\n{scores[layer, head]:.2f}"
        ink = "white" if kind == "diagonal" else "black"
        axes.text(head, layer, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks(range(heads), named["head"].values)
    axes.set_yticks(range(layers), named["layer"].values)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    for kind, colour in KIND_COLOURS.items():
        label = f"{kind[:2]}: {kind} ({int((names == kind).sum())})"
        axes.scatter([], [], marker="s", s=60, color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _draw_map(axes: Axes, values: xr.DataArray, scale: ScalarMappable) -> None:
    """[query, key] as an image, keys after the query left white; tokens along both axes."""
    T = values.sizes["query"]
    past = np.where(np.tri(T, dtype=bool), values.values, np.nan)
    colours = {"cmap": scale.cmap, "norm": scale.norm}
    axes.imshow(past, interpolation="nearest", **colours)
    size = 8 if T <= 24 else 6
    if "query_token" in values.coords and T <= MOST_LABELS:
        for axis, name in (("y", "query_token"), ("x", "key_token")):
            labels = [as_text(token) for token in values[name].values]
            getattr(axes, f"set_{axis}ticks")(range(T), labels, fontsize=size)
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("key [token]")
    axes.set_ylabel("query [token]")


def _model(data: xr.DataArray | xr.Dataset) -> str:
    """Model, text, tokens and context, where the data carry them."""
    attributes = data.attrs
    words = [str(attributes[name]) for name in ("model", "text") if attributes.get(name)]
    for name, form in (("tokens", "{:,} tokens"), ("context", "context {:,}")):
        if name in attributes:
            words.append(form.format(int(attributes[name])))
    return "; ".join(words)


def _head(data: xr.DataArray | xr.Dataset) -> str:
    return f"layer {data.attrs['layer']}, head {data.attrs['head']}"
