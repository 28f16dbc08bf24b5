"""How much each rotary pair is used: Figs. 3, 4, 6, 10, 13 and 19 of the paper.

All are drawn from the Dataset `usage` of the probe frequency_usage: mean 2-norm of each rotary pair
before rotation, q[layer, head, pair], k and v[layer, kv_head, pair], with the coordinate
inverse_frequency[layer, pair] in radians per token, fastest first, 0 = pair not rotated.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rope_study.checks import checked
from rope_study.decoder.attention import key_heads
from rope_study.errors import UserError
from rope_study.figures.style import (
    as_text,
    head_mean,
    heat_maps,
    label_pairs,
    line_style,
    new_figure,
    source,
)
from rope_study.probes import datasets
from rope_study.probes.datasets import QUANTITIES
from rope_study.probes.frequency_usage import slow_bands as find_slow_bands

USAGE = "probes.frequency_usage"
MOST_COLUMNS, MOST_DOMAINS = 6, 30  # side by side, and on one figure


@checked
def norms_by_layer(usage: xr.Dataset) -> Figure:
    """Fig. 3: mean 2-norm of query and key pairs (dimensionless), [layer, pair]."""
    datasets.check_made_by(USAGE, usage)
    panels = [(QUANTITIES[name], head_mean(usage, name)) for name in "qk"]
    return heat_maps(f"Queries and keys by layer, mean over heads\n{source(usage)}", [panels])


@checked
def norms_by_head(usage: xr.Dataset, layer: int) -> Figure:
    """Fig. 4: mean 2-norm of one layer's query and key pairs (dimensionless), [head, pair]."""
    datasets.check_made_by(USAGE, usage)
    _check_place(usage, "layer", layer)
    panels = [(QUANTITIES[name], usage[name].sel(layer=layer)) for name in "qk"]
    return heat_maps(f"Queries and keys of layer {layer} by head\n{source(usage)}", [panels])


@checked
def value_norms(usage: xr.Dataset) -> Figure:
    """Fig. 13: the control, mean 2-norm of value pairs (dimensionless), [layer, pair].

    Values are never rotated; they are cut into the same pairs and should show no pattern.
    """
    datasets.check_made_by(USAGE, usage)
    panels = [("values (control: never rotated)", head_mean(usage, "v"))]
    return heat_maps(f"Values by layer, mean over heads\n{source(usage)}", [panels])


@checked
def usage_side_by_side(usages: Mapping[str, xr.Dataset]) -> Figure:
    """Fig. 3 for several encodings: a column each, queries above keys, one scale for each row."""
    datasets.check_made_by(USAGE, *usages.values())
    # The columns name the encodings, so what is left to say is mostly one line for all of them.
    sources = [source(usage).replace(f", {name};", ";") for name, usage in usages.items()]
    return _columns("Queries and keys by layer and encoding, mean over heads", usages, sources)


@checked
def usage_by_domain(usages: Mapping[str, xr.Dataset]) -> Figure:
    """Fig. 19: Fig. 3 on texts of several domains, a column each; one scale for each row."""
    datasets.check_made_by(USAGE, *usages.values())
    if len(usages) > MOST_DOMAINS:
        raise UserError(
            f"usage_by_domain: {len(usages)} domains, and at most {MOST_DOMAINS} fit on a figure:"
            " give some of them, or fewer labels"
        )
    first = next(iter(usages.values()))
    counts = ", ".join(f"{name} {int(usage.tokens):,}" for name, usage in usages.items())
    sources = [str(first.model), f"tokens: {counts}"]
    return _columns("Queries and keys by layer and domain, mean over heads", usages, sources)


@checked
def bands_over_steps(usage: xr.Dataset) -> Figure:
    """How bands form while a model trains: mean 2-norm of query and key pairs, [step, pair].

    A row of panels for each kind of layers, the mean over their heads; one scale for all queries
    and one for all keys.

    Args:
      usage: what a run with train.probe_every leaves, `training.usage_log.read_usage`.
    """
    datasets.check_made_by("a run with train.probe_every", usage)
    rows = []
    for kind in np.unique(usage.kind):
        of_kind = usage.isel(layer=np.flatnonzero(usage.kind == kind))
        layers = _layers(of_kind.layer.values)
        rows.append([(f"{QUANTITIES[name]}, {layers}", _by_step(of_kind, name)) for name in "qk"])
    title = "Queries and keys by step of training, mean over heads and layers"
    return heat_maps(f"{title}\n{source(usage)}", rows)


def _by_step(usage: xr.Dataset, name: str) -> xr.DataArray:
    """Norms[step, pair] of layers of one kind, with the frequencies of the first of them."""
    norms = usage[name].mean(["layer", "head" if name == "q" else "kv_head"], keep_attrs=True)
    return norms.assign_coords(inverse_frequency=usage.inverse_frequency.isel(layer=0))


def _columns(title: str, usages: Mapping[str, xr.Dataset], sources: Sequence[str]) -> Figure:
    """Queries above keys, a column each; past MOST_COLUMNS in several rows."""
    rows = []
    for name in "qk":
        panels = [
            (f"{label}\n{QUANTITIES[name]}", head_mean(usage, name))
            for label, usage in usages.items()
        ]
        count = math.ceil(len(panels) / MOST_COLUMNS)
        columns = math.ceil(len(panels) / count)
        rows += [panels[i : i + columns] for i in range(0, len(panels), columns)]
    if len(rows) == 2:
        rows[1] = [("keys", norms) for _, norms in rows[1]]
    return heat_maps("\n".join([title, *dict.fromkeys(sources)]), rows)


# --- lines: single heads, and bands of several models -----------------------------------------


@checked
def head_usage(usage: xr.Dataset, heads: Mapping[str, Sequence[int]]) -> Figure:
    """Fig. 6, and Figs. 14 to 16: mean 2-norm of the pairs of single heads.

    Args:
      usage: of frequency_usage.
      heads: label -> (layer, head); the keys are those of the head's key-value head. The grey line
        is the mean over all heads of all layers.
    """
    datasets.check_made_by(USAGE, usage)
    if not all(len(place) == 2 for place in heads.values()):
        raise UserError(f"heads={heads} must be pairs (layer, head)", "heads")
    for layer, head in heads.values():
        _check_place(usage, "layer", layer)
        _check_place(usage, "head", head)
    places = [f"{label} (layer {layer}, head {head})" for label, (layer, head) in heads.items()]
    labels = [as_text(textwrap.fill(place, 55)) for place in places]
    legend_lines = math.ceil(sum(1 + label.count("\n") for label in labels) / 2) + 1
    title = f"Queries and keys of single heads\n{source(usage)}"
    figure = new_figure((9, 4 + 0.2 * legend_lines), title)
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "q"), (right, "k")):
        axes.set_title(QUANTITIES[name], fontsize=10)
        axis = "head" if name == "q" else "kv_head"
        axes.plot(
            usage[name].mean(["layer", axis]),
            color="0.65",
            linewidth=4,
            label="mean over all heads",
        )
        for index, (label, (layer, head)) in enumerate(zip(labels, heads.values(), strict=True)):
            norms = usage.q.sel(layer=layer, head=head)
            norms = norms if name == "q" else _read_keys(usage, layer, head)
            axes.plot(norms, **line_style(index), linewidth=1.3, label=label)
        layers = [layer for layer, _ in heads.values()] or [0]
        label_pairs(axes, usage.inverse_frequency.sel(layer=layers).values, ticks=5)
        axes.set_ylabel("mean 2-norm [dimensionless]")
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, handlelength=4)
    return figure


def _check_place(usage: xr.Dataset, axis: str, place: int) -> None:
    if place not in usage[axis].values:
        raise UserError(f"{axis}={place} is not one of {usage[axis].values.tolist()}", axis)


def _read_keys(usage: xr.Dataset, layer: int, head: int) -> xr.DataArray:
    """Norms of the keys that a query head reads; layers with fewer key heads end in NaN."""
    keys = usage.k.sel(layer=layer).dropna("kv_head", how="all")
    return keys.isel(kv_head=key_heads(usage.sizes["head"], keys.sizes["kv_head"])[head])


@checked
def slow_bands(usages: Mapping[str, xr.Dataset]) -> Figure:
    """Fig. 10: pair norms of models against frequency, and where the band of slow pairs begins.

    Layers of a model that have frequencies of their own (local and global ones of Gemma 3) have a
    line of their own. Norms are means over layers and heads, divided by their mean over pairs, as
    models differ in scale. A dotted line is where a band begins (rope_study.probes.slow_bands); a
    model whose slowest pair is not above the mean has none. Unrotated pairs are at the left edge.
    """
    datasets.check_made_by(USAGE, *usages.values())
    bands = {name: _named_bands(usages, name) for name in "qk"}
    height = 4.4 + 0.19 * sum(1 + label.count("\n") for label, _ in bands["q"])
    figure = new_figure((9, height), "Pair norms against frequency\n" + _sources(usages))
    for axes, name in zip(figure.subplots(1, 2, sharex=True, sharey=True), "qk", strict=True):
        axes.set_title(QUANTITIES[name], fontsize=10)
        for index, (label, band) in enumerate(bands[name]):
            _draw_band(axes, label, band, line_style(index))
        axes.axhline(1, color="0.6", linewidth=0.8, zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel("frequency [radians per token], slow to fast")
        axes.set_ylabel("mean 2-norm / mean over pairs" if name == "q" else "")
        axes.legend(fontsize=8, handlelength=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axes.grid(color="0.9")
    return figure


def _named_bands(usages: Mapping[str, xr.Dataset], name: str) -> list[tuple[str, xr.Dataset]]:
    """The bands of all models, each with its model and, where a model has several, its layers."""
    named = []
    for label, usage in usages.items():
        bands = find_slow_bands(usage, name)
        for band in bands:
            layers = f", {_layers(band.layers)}" if len(bands) > 1 else ""
            named.append((textwrap.fill(f"{label}{layers}", 46), band))
    return named


def _layers(numbers: Sequence[int]) -> str:
    """As "layers 0-4, 6-10"; of many runs how many there are and the first."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [f"{first}-{last}" if last > first else str(first) for first, last in runs]
    if len(words) > 6:
        return f"{len(numbers)} layers: {', '.join(words[:4])}, ..."
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(words)}"


def _draw_band(axes: Axes, label: str, band: xr.Dataset, line: dict) -> None:
    frequencies, norms = band.inverse_frequency.values, band.relative_norm.values
    rotated = frequencies > 0
    begins = float(band.begins)
    words = "no band of slow pairs" if np.isnan(begins) else "band of unrotated pairs"
    words = f"band from {begins:.2g}" if begins > 0 else words
    axes.plot(frequencies[rotated], norms[rotated], **line, label=as_text(f"{label}: {words}"))
    if begins > 0:
        axes.axvline(begins, color=line["color"], linestyle=":", linewidth=1.2)
    if not rotated.all():
        edge = frequencies[rotated].min() / 3 if rotated.any() else 1.0
        left = np.full((~rotated).sum(), edge)
        axes.plot(left, norms[~rotated], "|", color=line["color"])


def _sources(usages: Mapping[str, xr.Dataset]) -> str:
    return "\n".join(dict.fromkeys(source(usage) for usage in usages.values()))
