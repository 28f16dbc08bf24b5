"""What heads attend to: Figs. 5, 7 and 14 to 16, the logits of Tables 3 to 5, and heads by kind.

Attention comes from probes.attention_map, logits by pair from probes.contributions and
probes.contribution_map, kinds of heads from probes.name_heads.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rope_study.figures.style import COLOUR_MAP, LINE_COLOURS, label_pairs, new_figure

MOST_LABELS = 48  # tokens that can be read along an axis
SIGNED_MAP = "PuOr"  # orange below 0, violet above; told apart by colour-blind readers
KIND_COLOURS = {  # as on the page of rope_study.page
    "diagonal": "#0072B2",
    "previous": "#56B4E9",
    "sink": "#D55E00",
    "local": "#009E73",
    "delimiter": "#E69F00",
    "semantic": "#CC79A7",
    "mixed": "#E3E3E3",
}


def attention_patterns(maps: Mapping[str, xr.DataArray]) -> Figure:
    """Fig. 5, and Figs. 14 to 16: attention weights of heads on a text, a panel each.

    Args:
      maps: title -> attention[query, key], as probes.attention_map gives it.
    """
    columns = min(len(maps), 3)
    rows = math.ceil(len(maps) / columns)
    first = next(iter(maps.values()))
    figure = new_figure((4.6 * columns + 0.8, 4.6 * rows + 0.6), f"Attention\n{_model(first)}")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, attention) in zip(panels, maps.items(), strict=False):
        image = _draw_map(axes, attention, {"cmap": COLOUR_MAP, "vmin": 0, "vmax": 1})
        axes.set_title(f"{name}\n{_head(attention)}", fontsize=10)
    for axes in panels[len(maps) :]:
        axes.remove()
    figure.colorbar(image, ax=figure.axes, fraction=0.03, label="attention weight")
    return figure


def attention_by_band(
    attention: xr.DataArray, contribution: xr.DataArray, bands: Mapping[str, Sequence[int]]
) -> Figure:
    """Fig. 7: a head's attention, and what bands of rotary pairs add to its logits.

    Args:
      attention: [query, key] of probes.attention_map.
      contribution: [query, key, pair] of probes.contribution_map, of the same head and text.
      bands: title -> the rotary pairs of a band, counted from the fastest.
    """
    sums = {name: contribution.isel(pair=list(pairs)) for name, pairs in bands.items()}
    sums = {name: part.sum("pair", skipna=False) for name, part in sums.items()}
    columns = 1 + len(bands)
    figure = new_figure(
        (4.4 * columns + 1, 5.2), f"Logits by band: {_head(attention)}\n{_model(attention)}"
    )
    first, *rest = figure.subplots(1, columns)
    image = _draw_map(first, attention, {"cmap": COLOUR_MAP, "vmin": 0, "vmax": 1})
    first.set_title("attention", fontsize=10)
    figure.colorbar(image, ax=first, fraction=0.05, label="attention weight")
    largest = max(float(np.abs(part).max()) for part in sums.values())
    for axes, (name, part) in zip(rest, sums.items(), strict=True):
        image = _draw_map(axes, part, {"cmap": SIGNED_MAP, "vmin": -largest, "vmax": largest})
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("")
    figure.colorbar(image, ax=rest, fraction=0.05, label="added to q·k [before scaling]")
    return figure


def first_token_by_pair(contribution: xr.DataArray) -> Figure:
    """Fig. 7 and App. E.1: what each pair adds to logits on the first token, and on all others.

    Means over queries from the second on; of the others a mean over the keys that a query reads.
    A band that adds to the first token and takes from others sends a head to BOS.

    Args:
      contribution: [query, key, pair] of probes.contribution_map.
    """
    rest = contribution.isel(query=slice(1, None))
    lines = {
        "first token": rest.isel(key=0).mean("query"),
        "other tokens": rest.isel(key=slice(1, None)).mean("key").mean("query"),
    }
    figure = new_figure(
        (7.5, 4.2), f"Logits by pair: {_head(contribution)}\n{_model(contribution)}"
    )
    axes = figure.subplots()
    styles = zip(lines.items(), (LINE_COLOURS[4], LINE_COLOURS[2]), ("-", "--"), strict=True)
    for (name, line), colour, style in styles:
        label = f"{name}: {float(line.sum()):+.1f} in all"
        axes.plot(line, color=colour, linestyle=style, label=label)
    axes.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    label_pairs(axes, contribution.inverse_frequency.values[None], ticks=5)
    axes.set_ylabel("added to q·k [before scaling]")
    axes.legend(fontsize=9, handlelength=4)
    axes.grid(color="0.9")
    return figure


def logit_by_pair(found: xr.Dataset) -> Figure:
    """Tables 3 to 5: what each pair adds to one logit, beside its Cauchy-Schwarz bound.

    Args:
      found: of probes.contributions.
    """
    about = found.attrs  # an attribute of a Dataset hides behind its method of that name
    place = f"query {about['query']}, key {about['key']}"
    if "query_token" in about:
        place += f": {about['query_token']!r} on {about['key_token']!r}"
    figure = new_figure((8, 4.2), f"One logit by pair: {_head(found)}, {place}\n{_model(found)}")
    axes = figure.subplots()
    at = np.arange(found.sizes["pair"])
    bound = f"bound: {found.logit_bound:.2f} in all"
    for sign in (1, -1):
        drawn = {"color": "0.85", "width": 1, "label": bound if sign > 0 else None}
        axes.bar(at, sign * found.bound, **drawn)
    added = f"added: {found.logit:.2f} in all"
    axes.bar(at, found.contribution, color=LINE_COLOURS[2], width=0.7, label=added)
    axes.axhline(0, color="0.3", linewidth=0.8)
    label_pairs(axes, found.inverse_frequency.values[None], ticks=5)
    axes.set_ylabel("added to q·k [before scaling]")
    axes.legend(fontsize=9)
    return figure


def head_kinds(named: xr.Dataset) -> Figure:
    """What every head does, by layer and head: its kind's first two letters, and how sure that is.

    Args:
      named: of probes.name_heads.
    """
    names, scores = named.name.values, named.score.values
    layers, heads = names.shape
    size = (min(2.5 + 0.55 * heads, 14), 1.8 + 0.42 * layers)
    figure = new_figure((max(size[0], 6), size[1]), f"Heads by kind\n{_model(named)}")
    axes = figure.subplots()
    for (layer, head), kind in np.ndenumerate(names):
        box = {"facecolor": KIND_COLOURS[kind], "edgecolor": "0.4", "boxstyle": "square,pad=0.25"}
        text = f"{kind[:2]} {scores[layer, head]:.2f}"
        ink = "white" if kind == "diagonal" else "black"
        axes.text(head, layer, text, ha="center", va="center", fontsize=8, color=ink, bbox=box)
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks(range(heads), named["head"].values)
    axes.set_yticks(range(layers), named["layer"].values)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    for kind, colour in KIND_COLOURS.items():
        label = f"{kind[:2]}: {kind} ({int((names == kind).sum())})"
        axes.scatter([], [], marker="s", s=60, color=colour, edgecolor="0.4", label=label)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _draw_map(axes: Axes, values: xr.DataArray, scale: dict):
    """[query, key] as an image, keys after the query left white; tokens along both axes."""
    T = values.sizes["query"]
    shown = np.where(np.tri(T, dtype=bool), values.values, np.nan)
    image = axes.imshow(shown, interpolation="nearest", **scale)
    size = 8 if T <= 24 else 6
    if "query_token" in values.coords and T <= MOST_LABELS:
        for axis, name in (("y", "query_token"), ("x", "key_token")):
            # Tokens can hold $, which Matplotlib would read as mathematics.
            labels = [str(token).replace("$", r"\$") for token in values[name].values]
            getattr(axes, f"set_{axis}ticks")(range(T), labels, fontsize=size)
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("key [token]")
    axes.set_ylabel("query [token]")
    return image


def _model(data: xr.DataArray | xr.Dataset) -> str:
    """Model and text, where the data carry them."""
    return "; ".join(str(data.attrs[name]) for name in ("model", "text") if data.attrs.get(name))


def _head(data: xr.DataArray | xr.Dataset) -> str:
    return f"layer {data.attrs['layer']}, head {data.attrs['head']}"
