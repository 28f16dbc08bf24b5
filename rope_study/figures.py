"""The figures: one function a figure of the paper, and three that compare encodings.

Every function returns a matplotlib Figure and leaves no global state behind. The statistics come
from the probe `frequency_usage` as an xarray.Dataset `usage`: mean 2-norm of each rotary pair
before rotation, q[layer, head, frequency], k and v[layer, kv_head, frequency], with the coordinate
inverse_frequency[layer, frequency] in radians per token, fastest first, 0 = pair not rotated.
"""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from rope_study.encodings import describe
from rope_study.rotary import Encoding, pairs, rope

QUANTITIES = {"q": "queries", "k": "keys", "v": "values"}
COLOUR_MAP = "cividis"  # grows in lightness: reads the same in grey and for colour-blind readers
# Okabe and Ito's colours without yellow, which is lost on white. Printed in grey several of them
# are alike, so the line styles differ too; seven against six repeat only after 42 lines.
LINE_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":", (0, (10, 3)), (0, (6, 1, 1, 1, 1, 1)))


# --- Fig. 2: does RoPE decay? -----------------------------------------------------------------


def activation_by_distance(
    q: np.ndarray, k: np.ndarray, inverse_frequencies: np.ndarray, distances: ArrayLike
) -> np.ndarray:
    """Activation of a query on a key at each distance, sum_k q^(k)T rho(g_k)^distance k^(k).

    Args:
      q, k: float64[..., d], before rotation.
      inverse_frequencies: float64[d/2], radians per token.
      distances: tokens, [R].

    Returns:
      float64[..., R], the logit before softmax and scaling.
    """
    (q1, q2), (k1, k2) = pairs(q), pairs(k)
    angles = np.outer(inverse_frequencies, distances)  # [d/2, R]
    return (q1 * k1 + q2 * k2) @ np.cos(angles) - (q1 * k2 - q2 * k1) @ np.sin(angles)


def decay(
    head_dim: int = 256,
    theta: float = 10_000.0,
    distances: Sequence[int] = range(0, 4097, 8),
    samples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Fig. 2: all-ones q = k decay with distance (tokens); q, k ~ N(0, I) do not (Prop. 3.2).

    Left: activation over its value at distance 0. Right: in units of sqrt(head_dim), the standard
    deviation that q^T k has at every distance.
    """
    encoding = rope(theta)
    frequencies = encoding.inverse_frequencies(head_dim)
    ones = np.ones(head_dim)
    q, k = np.random.default_rng(seed).standard_normal((2, samples, head_dim))
    equal = activation_by_distance(ones, ones, frequencies, distances) / head_dim
    drawn = activation_by_distance(q, k, frequencies, distances) / math.sqrt(head_dim)

    source = f"{encoding.name}, head_dim={head_dim}; no model, no text"
    figure = _figure((10, 4), f"Activation against distance\n{source}")
    left, right = figure.subplots(1, 2)
    left.set_title("q = k = all ones: decays", fontsize=10)
    left.plot(distances, equal, color=LINE_COLOURS[2])
    left.set_ylabel("activation / activation at distance 0")
    right.set_title(f"q, k ~ N(0, I), {samples:,} draws, seed {seed}: does not decay", fontsize=10)
    for draw, colour, style in zip(drawn[:3], LINE_COLOURS[4:], LINE_STYLES[1:], strict=False):
        right.plot(distances, draw, color=colour, linestyle=style, linewidth=0.6)
    mean, deviation = drawn.mean(0), drawn.std(0)
    low, high = mean - deviation, mean + deviation
    right.fill_between(distances, low, high, color="0.8", label="mean ± s.d.")
    right.plot(distances, mean, color="black", linewidth=2, label="mean")
    right.plot([], [], color=LINE_COLOURS[4], linestyle="--", linewidth=1, label="single draws")
    right.set_ylabel("activation / sqrt(head_dim)")
    right.legend(loc="upper right", ncols=3, fontsize=8)
    right.set_ylim(-4.5, 4.5)
    for axes in (left, right):
        axes.axhline(0, color="0.5", linewidth=0.8, zorder=0)
        axes.set_xlabel("distance [tokens]")
    return figure


# --- how far pairs turn -----------------------------------------------------------------------


def encoding_cycles(
    encodings: Sequence[str | Encoding], head_dim: int = 256, context: int = 8192
) -> Figure:
    """Cycles of each pair over the context, c_k = g_k L / 2 pi, against its index, fastest first.

    The legend counts the pairs that complete a cycle. Pairs that do not turn are marked below the
    axis of cycles, a row for each encoding.
    """
    found = [describe(encoding, head_dim, context) for encoding in encodings]
    below = 0.2 * len(found)  # inches for the marks, and as much again for the legend
    title = f"Cycles over the context: head_dim={head_dim}, L={context:,} tokens"
    figure = _figure((9, 5 + 2 * below), title)
    axes, still = figure.subplots(2, 1, sharex=True, height_ratios=(4, below))
    for index, one in enumerate(found):
        colour, line = LINE_COLOURS[index % 7], LINE_STYLES[index % 6]
        name = textwrap.shorten(one.name, 120, placeholder=" ...)")  # LongRoPE lists every pair
        label = f"{name}: {np.sum(one.cycles >= 1)} of {len(one.cycles)} complete a cycle"
        turning = np.where(one.cycles > 0, one.cycles, np.nan)
        # Encodings that agree lie on each other: the first is drawn widest.
        width = 1.2 + 3 * (1 - index / len(found))
        wrapped = "\n  ".join(textwrap.wrap(label, 60))
        axes.plot(turning, color=colour, linestyle=line, linewidth=width, label=wrapped)
        at = np.flatnonzero(one.cycles == 0)
        still.scatter(at, np.full(len(at), -index), marker="|", s=24, color=colour)
    axes.axhline(1, color="black", linewidth=1)
    above = {"textcoords": "offset points", "ha": "right", "va": "bottom", "fontsize": 9}
    axes.annotate("one cycle", (1, 1), (-4, 2), xycoords=("axes fraction", "data"), **above)
    axes.set_yscale("log")
    axes.set_ylabel("cycles over the context, $c_k$")
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, handlelength=5)
    still.set_ylim(0.6 - len(found), 0.6)
    still.set_yticks([])
    still.set_ylabel("not\nrotated", rotation=0, ha="right", va="center", fontsize=9)
    still.set_xlabel("rotary pair, fastest first")
    return figure


# --- Figs. 3, 4, 13: mean norm of each rotary pair --------------------------------------------


def norms_by_layer(usage: xr.Dataset) -> Figure:
    """Fig. 3: mean 2-norm of query and key pairs (dimensionless), [layer, frequency]."""
    panels = [(QUANTITIES[name], _head_mean(usage, name)) for name in "qk"]
    return _heat_maps(f"Queries and keys by layer, mean over heads\n{_source(usage)}", [panels])


def norms_by_head(usage: xr.Dataset, layer: int) -> Figure:
    """Fig. 4: mean 2-norm of one layer's query and key pairs (dimensionless), [head, frequency]."""
    panels = [(QUANTITIES[name], usage[name].sel(layer=layer)) for name in "qk"]
    return _heat_maps(f"Queries and keys of layer {layer} by head\n{_source(usage)}", [panels])


def value_norms(usage: xr.Dataset) -> Figure:
    """Fig. 13: the control, mean 2-norm of value pairs (dimensionless), [layer, frequency].

    Values are never rotated; they are cut into the same pairs and should show no pattern.
    """
    panels = [("values (control: never rotated)", _head_mean(usage, "v"))]
    return _heat_maps(f"Values by layer, mean over heads\n{_source(usage)}", [panels])


def usage_side_by_side(usages: Mapping[str, xr.Dataset]) -> Figure:
    """Fig. 3 for several encodings: a column each, queries above keys, one scale for each row."""
    queries = [(f"{name}\nqueries", _head_mean(usage, "q")) for name, usage in usages.items()]
    keys = [("keys", _head_mean(usage, "k")) for usage in usages.values()]
    # The columns name the encodings, so what is left to say is mostly one line for all of them.
    sources = [_source(usage).replace(f", {name};", ";") for name, usage in usages.items()]
    lines = ["Queries and keys by layer and encoding, mean over heads", *dict.fromkeys(sources)]
    return _heat_maps("\n".join(lines), [queries, keys])


# --- training ---------------------------------------------------------------------------------


def loss_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str = "Training loss by encoding",
    x_label: str = "step",
) -> Figure:
    """Training loss (nats/token) of each encoding: (steps[S], losses[S]), raw and smoothed.

    The smoothed line is a running mean over 2 % of the curve; the legend gives its last value.
    """
    figure = _figure((9, 5), title)
    axes, late = figure.subplots(), []
    for index, (name, (steps, losses)) in enumerate(curves.items()):
        smooth = _running_mean(np.asarray(losses, np.float64), max(1, len(losses) // 50))
        colour, style = LINE_COLOURS[index % 7], LINE_STYLES[index % 6]
        axes.plot(steps, losses, color=colour, alpha=0.15, linewidth=0.5)
        axes.plot(steps, smooth, color=colour, linestyle=style, label=f"{name}: {smooth[-1]:.4f}")
        late.extend(smooth[len(smooth) // 5 :])
    finite = [loss for loss in late if math.isfinite(loss)]
    if finite:  # The first steps fall by several nats and would flatten what there is to compare.
        low, high = min(finite), max(finite)
        margin = 0.1 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(x_label)
    axes.set_ylabel("training loss [nats/token]")
    axes.grid(color="0.9")
    axes.legend(title="final loss, smoothed", handlelength=5, fontsize=9)
    return figure


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """float64[S]: mean over `width` neighbours, fewer at both ends."""
    window = np.ones(width)
    total = np.convolve(values, window, mode="same")
    return total / np.convolve(np.ones_like(values), window, mode="same")


# --- drawing ----------------------------------------------------------------------------------


def _heat_maps(title: str, rows: list[list[tuple[str, xr.DataArray]]]) -> Figure:
    """A grid of (title, norms[row, frequency]); each of q, k, v has its own colour scale.

    Only the product of a query's and a key's norm enters a logit, so their ratio says nothing and
    a common scale would only hide the smaller of them.
    """
    columns, height = len(rows[0]), max(len(norms) for row in rows for _, norms in row)
    width = {1: 6.0, 2: 4.4}.get(columns, 2.5)
    size = (1.2 + columns * width, 1.5 + len(rows) * min(max(height / 6, 1.8), 4.5))
    figure = _figure(size, title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    by_quantity: dict[str, list[tuple[Axes, xr.DataArray]]] = {}
    for axes, (name, norms) in zip(grid.flat, itertools.chain(*rows), strict=True):
        axes.set_title(_wrap(name, width), fontsize=9, pad=16)
        by_quantity.setdefault(norms.name, []).append((axes, norms))
    for quantity, panels in by_quantity.items():
        largest = max(float(norms.max()) for _, norms in panels)
        for axes, norms in panels:
            scale = {"cmap": COLOUR_MAP, "vmin": 0, "vmax": largest}
            image = axes.imshow(norms.values, aspect="auto", interpolation="nearest", **scale)
            _label(axes, norms, x_ticks=5 if columns < 3 else 3, named=axes is panels[0][0])
            _mark_unrotated(axes, norms, "q, k not rotated" if quantity == "v" else "not rotated")
        every = [axes for axes, _ in panels]
        bar = figure.colorbar(image, ax=every, fraction=0.1 / columns, pad=0.05 / columns)
        bar.ax.tick_params(labelsize=8)
        units = panels[0][1].attrs["units"]
        bar.set_label(f"mean 2-norm\n[{'dimensionless' if units == '1' else units}]", fontsize=9)
    return figure


def _label(axes: Axes, norms: xr.DataArray, x_ticks: int, named: bool) -> None:
    """Both axes; in a grid only what is `named` has a y label and only the last row an x label."""
    row, frequencies = norms.dims[0], _inverse_frequencies(norms)
    at = np.arange(0, len(norms), math.ceil(len(norms) / 10))
    axes.set_yticks(at, norms[row].values[at])
    axes.set_ylabel(row.replace("kv_head", "key-value head") if named else "")
    at = np.unique(np.linspace(0, norms.shape[1] - 1, x_ticks).round().astype(int))
    labels, below = at, "pair, fastest first\n(frequencies differ by layer)"
    if np.isnan(frequencies).any():  # a rotary function of the user's own
        below = "pair\n(frequencies not known)"
    elif (frequencies == frequencies[0]).all():
        labels = [f"{i}\n{frequencies[0, i]:.2g}" for i in at]
        below = "pair, fastest first\nradians per token"
    axes.set_xticks(at, labels)
    last = axes.get_subplotspec().is_last_row()
    axes.set_xlabel(f"rotary {below}" if last else "", fontsize=9)
    axes.tick_params(labelsize=8, labelbottom=last)


def _mark_unrotated(axes: Axes, norms: xr.DataArray, words: str) -> None:
    """A dashed line around each block of pairs that do not turn, and the words above the first."""
    still = _inverse_frequencies(norms) == 0
    style = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.6, "fill": False}
    stroke = [withStroke(linewidth=3, foreground="black")]
    for _, rows in itertools.groupby(range(len(still)), key=lambda row: still[row].tobytes()):
        first, *rest = rows  # neighbouring rows with the same pairs share one block
        edges = np.flatnonzero(np.diff(still[first], prepend=False, append=False))
        for left, right in edges.reshape(-1, 2) - 0.5:
            size = (right - left, 1 + len(rest))
            axes.add_patch(Rectangle((left, first - 0.5), *size, path_effects=stroke, **style))
            if len(axes.patches) == 1:
                x, side = (left, "left") if left < 0 else (right, "right")
                above = {"transform": axes.get_xaxis_transform(), "ha": side, "fontsize": 8}
                axes.text(x, 1.02, f"dashed: {words}", **above)


def _inverse_frequencies(norms: xr.DataArray) -> np.ndarray:
    """float64[row, frequency], radians per token; heads of a layer share the layer's."""
    return norms.coords["inverse_frequency"].broadcast_like(norms).transpose(*norms.dims).values


def _head_mean(usage: xr.Dataset, name: str) -> xr.DataArray:
    """Norms[layer, frequency]."""
    return usage[name].mean("head" if name == "q" else "kv_head", keep_attrs=True)


def _source(usage: xr.Dataset) -> str:
    model, text = usage.attrs["model"], usage.attrs["text"]
    tokens, context = int(usage.attrs["tokens"]), int(usage.attrs["context"])
    return f"{model}; {text}, {tokens:,} tokens, context {context:,}"


def _figure(size: tuple[float, float], title: str) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_wrap(title, size[0]), fontsize=11, parse_math=False)
    return figure


def _wrap(text: str, inches: float) -> str:
    """Breaks each line where it would outgrow the width, at 11 characters an inch."""
    return "\n".join(textwrap.fill(line, int(11 * inches)) for line in text.split("\n"))
