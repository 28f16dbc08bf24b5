"""What interventions on bands of pairs do: loss, and the attention of every head."""

import math

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.figures.style import COLOUR_MAP, SKY_BLUE, as_text, new_figure, wrap
from rope_study.probes import datasets


@checked
def intervention_effects(effects: xr.Dataset, pattern: str = "previous") -> Figure:
    """Loss difference from plain (nats/token, bars one standard error) and one pattern of heads.

    Args:
      effects: of interventions.measure.
      pattern: "previous", "diagonal", "first", "entropy" or "total_variation", of
        every head.
    """
    datasets.check_made_by("interventions.measure", effects)
    axes = ("intervention", *datasets.BY_HEAD)
    known = [name for name, values in effects.items() if values.dims == axes and values.size]
    if pattern not in known:
        raise UserError(
            f"pattern={pattern!r} was not measured by head; measured: {', '.join(map(str, known))}",
            "pattern",
        )
    names = [str(name) for name in effects.intervention.values]
    by_head = effects[pattern].stack(place=("layer", "head"))
    size = (11, 1.9 + 0.36 * len(names))
    text = f"{effects.model}; {effects.texts} texts, {effects.tokens:,} tokens"
    text += f", context {effects.context:,}"
    figure = new_figure(size, f"Pairs edited in all heads at once\n{text}")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    rows = np.arange(len(names))
    error = {"xerr": effects.loss_difference_se, "ecolor": "0.3", "capsize": 2}
    left.barh(rows, effects.loss_difference, color=SKY_BLUE, **error)
    left.axvline(0, color="0.3", linewidth=0.8)
    left.set_yticks(rows, [as_text(name) for name in names])
    left.invert_yaxis()
    left.set_xlabel("loss difference from plain [nats/token]")
    left.grid(color="0.9", axis="x")
    left.set_axisbelow(True)
    image = right.imshow(by_head.values, cmap=COLOUR_MAP, vmin=0, aspect="auto")
    heads = effects.sizes["head"]
    edges = np.arange(0, by_head.sizes["place"], heads)
    shown = slice(None, None, math.ceil(len(edges) / 12))
    right.set_xticks((edges + (heads - 1) / 2)[shown], effects.layer.values[shown])
    for edge in edges[1:] - 0.5:
        right.axvline(edge, color="white", linewidth=1.5)
    right.tick_params(axis="y", left=False)
    right.set_xlabel("layer, its heads side by side")
    figure.colorbar(image, ax=right, label=wrap(effects[pattern].long_name, 0.7 * size[1]))
    return figure
