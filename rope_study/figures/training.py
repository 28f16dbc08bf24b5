"""Loss curves of a study."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.figures.style import as_text, line_style, new_figure


@checked
def loss_curves(
    curves: Mapping[str, Sequence[Any]],
    title: str = "Training loss by encoding",
    x_label: str = "step",
) -> Figure:
    """Training loss (nats/token) of each encoding: (steps[S], losses[S]), raw and smoothed.

    The smoothed line is a running mean over 2 % of the curve; the legend gives its last value.
    """
    if not curves:
        raise UserError("there are no curves to draw", "curves")
    for name, curve in curves.items():
        if len(curve) != 2 or np.ndim(curve[0]) != 1 or np.shape(curve[0]) != np.shape(curve[1]):
            raise UserError(f"curves[{name!r}] must be (steps[S], losses[S])", "curves")
    figure = new_figure((9, 4.7 + 0.12 * len(curves)), title)
    axes, late = figure.subplots(), []
    for index, (name, (steps, losses)) in enumerate(curves.items()):
        raw, line = np.asarray(losses, np.float64), line_style(index)
        smooth = _running_mean(raw, max(1, len(raw) // 50))
        axes.plot(steps, raw, color=line["color"], alpha=0.15, linewidth=0.5)
        axes.plot(
            steps, smooth, **line, label=as_text(textwrap.fill(f"{name}: {smooth[-1]:.4f}", 60))
        )
        late.extend(smooth[len(smooth) // 5 :])
    finite = [loss for loss in late if math.isfinite(loss)]
    if finite:  # The first steps fall by several nats and would flatten what there is to compare.
        low, high = min(finite), max(finite)
        margin = 0.1 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(x_label)
    axes.set_ylabel("training loss [nats/token]")
    axes.grid(color="0.9")
    names = {"title": "final loss, smoothed", "handlelength": 5, "fontsize": 8}
    figure.legend(loc="outside lower center", ncols=2, **names)
    return figure


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """float64[S]: mean over `width` neighbours, fewer at both ends."""
    window = np.ones(width)
    total = np.convolve(values, window, mode="same")
    return total / np.convolve(np.ones_like(values), window, mode="same")
