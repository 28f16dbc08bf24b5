"""Loss by position and by length of the windows, an encoding a line."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rope_study.checks import checked
from rope_study.figures.style import GUIDE, as_text, line_style, new_figure, wrap
from rope_study.probes import datasets

NATS = "loss [nats/token]"


@checked
def loss_by_position(evaluation: xr.Dataset) -> Figure:
    """Loss (nats/token) by how many tokens were read before, and by the length of the windows.

    Bars are 95 % intervals over documents. Positions are those of the longest windows; a point is
    the mean over a group of them, and stands at its last. A grey line is the trained length.

    Args:
      evaluation: of training.by_document.evaluate_documents.
    """
    datasets.check_made_by("training.evaluate_documents", evaluation)
    names = [wrap(str(name), 6) for name in evaluation.rotary.values]
    text = f"{evaluation.model}; {evaluation.text}, documents {evaluation.across}"
    text += f"\n{evaluation.documents:,} documents, {evaluation.tokens:,} tokens"
    lines = sum(1 + name.count("\n") for name in names)
    figure = new_figure(
        (11, 4.6 + 0.17 * lines), f"Loss by position and length, bars are 95 % intervals\n{text}"
    )
    by_position, by_length = figure.subplots(1, 2, width_ratios=(3, 2))
    longest = evaluation.sel(length=evaluation.length.max())
    panels = (
        (by_position, longest, "position_loss", "position", "tokens read before"),
        (by_length, evaluation.sortby("length"), "loss", "length", "tokens a window predicts"),
    )
    for axes, shown, variable, place, label in panels:
        for index, name in enumerate(names):
            line = shown.isel(rotary=index)
            axes.errorbar(
                line[place], line[variable], line[f"{variable}_interval"], **line_style(index),
                capsize=2, marker="o", markersize=3, label=as_text(name),
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xlabel(label)
        axes.set_ylabel(NATS)
        axes.grid(color="0.9")
        _mark_trained(axes, evaluation.attrs.get("trained_length"))
    lengths = _far_apart(evaluation.length.values)
    by_length.set_xticks(lengths, [f"{length:,}" for length in lengths])
    by_length.minorticks_off()
    by_position.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")
    _focus(by_position, longest["position_loss"].values)
    handles, labels = by_position.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=5, fontsize=8)
    return figure


def _far_apart(lengths: np.ndarray) -> list[int]:
    """Those whose labels have room on a logarithmic axis, the least first."""
    rising = np.sort(lengths)
    shown = [int(rising[0])]
    room = (rising[-1] / rising[0]) ** (1 / 7)
    for length in rising[1:].tolist():
        if length >= room * shown[-1]:
            shown.append(length)
    return shown


def _mark_trained(axes: Axes, length: int | None) -> None:
    """A line at the trained length, named at its top."""
    if length is not None:
        axes.axvline(length, **GUIDE)
        axes.annotate(
            "trained", (length, 1), (2, -2), xycoords=("data", "axes fraction"), fontsize=8,
            textcoords="offset points", color="0.4", va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip


def _focus(axes: Axes, losses: np.ndarray) -> None:
    """Leaves out the first positions, where little was read: they would flatten the rest."""
    later = losses[:, losses.shape[1] // 4 :]
    later = later[np.isfinite(later)]
    if later.size:
        margin = 0.1 * (later.max() - later.min()) or 0.1
        axes.set_ylim(later.min() - margin, later.max() + margin)
