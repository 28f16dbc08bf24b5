"""What the figures share: size and title, colours and lines, pair axes, heat maps of norms."""

import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Hashable
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

COLOUR_MAP = "cividis"  # grows in lightness: reads the same in grey and for colour-blind readers
SIGNED_MAP = "PuOr"  # orange below 0, violet above; told apart by colour-blind readers
# Okabe and Ito's colours without yellow, which is lost on white. Printed in grey several of them
# are alike, so the line styles differ too; seven against six repeat only after 42 lines.
LINE_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
BLACK, ORANGE, BLUE, GREEN, RED, PINK, SKY_BLUE = LINE_COLOURS
LINE_STYLES = ("-", "--", "-.", ":", (0, (10, 3)), (0, (6, 1, 1, 1, 1, 1)))
GUIDE = {"color": "0.45", "linewidth": 0.8, "zorder": 0}  # lines to compare with
KIND_COLOURS = {  # of heads, as on the page of reports.head_page
    "diagonal": BLUE,
    "previous": SKY_BLUE,
    "sink": RED,
    "local": GREEN,
    "delimiter": ORANGE,
    "semantic": PINK,
    "mixed": "#E3E3E3",
}


MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from (?:current )?font")


class _Figure(Figure):
    """Warns once of characters that no font has, where Matplotlib does for each again and again."""

    warned: ClassVar[set[str]] = set()

    def draw(self, renderer: Any) -> None:
        """Draws it."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().draw(renderer)
        found = [(warning, MISSING_GLYPH.match(str(warning.message))) for warning in caught]
        for warning in (warning for warning, match in found if match is None):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        missing = {chr(int(match[1])) for _, match in found if match} - self.warned
        if missing:
            self.warned.update(missing)
            warnings.warn(
                f"no font of the figures has {''.join(sorted(missing)[:20])}: boxes stand for them;"
                " font.family of Matplotlib (a matplotlibrc file) takes a list of fonts",
                stacklevel=2,
            )


def as_text(name: object) -> str:
    """A name that may be a user's, as Matplotlib shows it and nothing else.

    Dollars would be read as mathematics, and legends leave out what begins with an underscore.
    """
    text = str(name).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def new_figure(size: tuple[float, float], title: str) -> Figure:
    """An empty figure of that size in inches, with its title wrapped to the width."""
    figure = _Figure(figsize=size, layout="constrained")
    figure.suptitle(wrap(title, size[0]), fontsize=11, parse_math=False)
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Colour and style of the line of that number."""
    colours, styles = len(LINE_COLOURS), len(LINE_STYLES)
    return {"color": LINE_COLOURS[index % colours], "linestyle": LINE_STYLES[index % styles]}


def wrap(text: str, inches: float) -> str:
    """Breaks each line where it would outgrow the width, at 11 characters an inch."""
    return "\n".join(textwrap.fill(line, int(11 * inches)) for line in text.split("\n"))


def heat_maps(title: str, rows: list[list[tuple[str, xr.DataArray]]]) -> Figure:
    """A grid of (title, norms[row, pair]); each of q, k, v has its own colour scale.

    The last rows may have fewer panels than the first. Only the product of a query's and a key's
    norm enters a logit, so their ratio says nothing and a common scale would only hide the smaller
    of them.
    """
    columns, height = len(rows[0]), max(len(norms) for row in rows for _, norms in row)
    most_lines = max(name.count("\n") for row in rows for name, _ in row)
    width = {1: 6.0, 2: 4.4}.get(columns, 2.5)
    row_height = min(max(height / 6, 1.8), 4.5) + 0.15 * most_lines
    size = (1.2 + columns * width, 1.5 + len(rows) * row_height)
    figure = new_figure(size, title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    by_quantity: dict[Hashable, list[tuple[Axes, xr.DataArray]]] = {}
    for panels, axes_row in zip(rows, grid, strict=True):
        for (name, norms), axes in zip(panels, axes_row, strict=False):
            axes.set_title(as_text(wrap(name, width)), fontsize=9, pad=16)
            by_quantity.setdefault(norms.name, []).append((axes, norms))
        for axes in axes_row[len(panels) :]:
            axes.remove()
    for quantity, panels in by_quantity.items():
        largest = max(float(norms.max()) for _, norms in panels)
        scale = ScalarMappable(Normalize(0, largest), COLOUR_MAP)
        for axes, norms in panels:
            colours = {"cmap": scale.cmap, "norm": scale.norm}
            axes.imshow(norms.values, aspect="auto", interpolation="nearest", **colours)
            _label(axes, norms, x_ticks=5 if columns < 3 else 3, named=axes is panels[0][0])
            if _is_labelled_below(axes, norms, rows):
                axes.set_xlabel("")
                axes.tick_params(labelbottom=False)
            _mark_unrotated(axes, norms, "q, k not rotated" if quantity == "v" else "not rotated")
        every = [axes for axes, _ in panels]
        bar = figure.colorbar(scale, ax=every, fraction=0.1 / columns, pad=0.05 / columns)
        bar.ax.tick_params(labelsize=8)
        units = panels[0][1].attrs["units"]
        bar.set_label(f"mean 2-norm\n[{'dimensionless' if units == '1' else units}]", fontsize=9)
    return figure


def _label(axes: Axes, norms: xr.DataArray, x_ticks: int, named: bool) -> None:
    """Both axes; in a grid only what is `named` has a y label."""
    row = str(norms.dims[0])
    ticks = np.arange(0, len(norms), math.ceil(len(norms) / 10))
    axes.set_yticks(ticks, norms[row].values[ticks])
    axes.set_ylabel(row.replace("kv_head", "key-value head") if named else "")
    label_pairs(axes, inverse_frequencies(norms), x_ticks)
    axes.tick_params(labelsize=8)


def _is_labelled_below(axes: Axes, norms: xr.DataArray, rows: list[list]) -> bool:
    """Whether the panel below this one has the same pairs, with the same frequencies."""
    place = axes.get_subplotspec()
    assert place is not None
    row, column = place.rowspan.start, place.colspan.start
    if row + 1 == len(rows) or column >= len(rows[row + 1]):
        return False
    below = inverse_frequencies(rows[row + 1][column][1])
    return np.array_equal(inverse_frequencies(norms), below, equal_nan=True)


def label_pairs(axes: Axes, frequencies: np.ndarray, ticks: int) -> None:
    """The x axis of rotary pairs whose frequencies are float64[row, pair]."""
    places = np.unique(np.linspace(0, frequencies.shape[1] - 1, ticks).round().astype(int))
    labels, below = places.astype(str), "pair, fastest first\n(frequencies differ by layer)"
    if np.isnan(frequencies).any():  # a rotary function of the user's own
        below = "pair\n(frequencies not known)"
    elif (frequencies == frequencies[0]).all():
        labels = [f"{i}\n{frequencies[0, i]:.2g}" for i in places]
        below = "pair, fastest first\nradians per token"
    axes.set_xticks(places, labels)
    axes.set_xlabel(f"rotary {below}", fontsize=9)


def _mark_unrotated(axes: Axes, norms: xr.DataArray, words: str) -> None:
    """A dashed line around each block of unrotated pairs, and the words above the first."""
    unrotated = inverse_frequencies(norms) == 0
    style = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.6, "fill": False}
    stroke = [withStroke(linewidth=3, foreground="black")]
    by_row = [row.tobytes() for row in unrotated]
    for _, rows in itertools.groupby(range(len(by_row)), key=by_row.__getitem__):
        first, *rest = rows  # neighbouring rows with the same pairs share one block
        edges = np.flatnonzero(np.diff(unrotated[first], prepend=False, append=False))
        for left, right in edges.reshape(-1, 2) - 0.5:
            size = (right - left, 1 + len(rest))
            axes.add_patch(Rectangle((left, first - 0.5), *size, path_effects=stroke, **style))
            if len(axes.patches) == 1:
                x, side = (left, "left") if left < 0 else (right, "right")
                above = {"transform": axes.get_xaxis_transform(), "ha": side, "fontsize": 8}
                axes.text(x, 1.02, f"dashed: {words}", **above)


def inverse_frequencies(norms: xr.DataArray) -> np.ndarray:
    """float64[row, pair], radians per token; heads of a layer share the layer's."""
    return norms.coords["inverse_frequency"].broadcast_like(norms).transpose(*norms.dims).values


def head_mean(usage: xr.Dataset, name: str) -> xr.DataArray:
    """Norms[layer, pair]."""
    return usage[name].mean("head" if name == "q" else "kv_head", keep_attrs=True)


def source(usage: xr.Dataset) -> str:
    """What was read: model, text, tokens and context."""
    attributes = usage.attrs
    text = f"{attributes['text']}, " if attributes["text"] else ""
    tokens, context = int(attributes["tokens"]), int(attributes["context"])
    return f"{attributes['model']}; {text}{tokens:,} tokens, context {context:,}"
