"""Differences in loss between encodings, seed by seed."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rope_study.checks import check, checked
from rope_study.errors import UserError
from rope_study.figures.style import LINE_COLOURS, as_text, new_figure


@checked
def paired_differences(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Held-out loss minus the first encoding's, nats/token, and 95 % intervals of the mean.

    Over several seeds, paired by seed (Student's t); of one seed, over windows, 1.96 standard
    errors.

    Args:
      rows: "encodings" of a study's results: name, and but for the first "difference" and either
        "difference_interval" (half its width) with "differences", seed -> difference, or
        "difference_se" over held-out windows.
    """
    compared = [row for row in rows if "difference" in row]
    if not compared or not all("name" in row for row in rows):
        raise UserError(
            "rows have a name, and but for the first a difference: give 'encodings' of results.json"
            " of a study of two encodings or more",
            "rows",
        )
    for row in compared:
        for name in row.keys() & {"difference", "difference_interval", "difference_se"}:
            check(name, row[name], float)
            if name != "difference" and row[name] < 0:
                raise UserError(f"{name}={row[name]} must be at least 0", "rows")
    seeds = len(compared[0].get("differences", [0]))
    over = f"{seeds} seeds, paired" if seeds > 1 else "1 seed, over held-out windows, paired"
    names = [textwrap.fill(str(row["name"]), 40) for row in compared]
    figure = new_figure(
        (8, 1.8 + 0.5 * sum(1 + name.count("\n") / 2 for name in names)),
        f"Held-out loss minus that of {rows[0]['name']}\n"
        f"{over}; bars are 95 % intervals of the mean",
    )
    axes = figure.subplots()
    for place, row in enumerate(compared):
        half = row.get("difference_interval", 1.96 * row.get("difference_se", np.nan))
        by_seed = list(row["differences"].values()) if seeds > 1 else []
        axes.plot(by_seed, np.full(len(by_seed), place), "o", color="0.6", markersize=5)
        axes.errorbar(
            row["difference"], place, xerr=half, fmt="D", capsize=4, color=LINE_COLOURS[2],
            markersize=5,
        )  # fmt: skip
        # In words too: beside a large difference a small one lies on the line of none.
        words = f"{row['difference']:+.4f} ± {half:.4f}"
        axes.annotate(
            words, (row["difference"], place), (0, 8), textcoords="offset points", ha="center",
            fontsize=9,
        )  # fmt: skip
    axes.margins(x=0.3)
    axes.axvline(0, color="0.3", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(compared)), [as_text(name) for name in names])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.set_xlabel("difference in held-out loss [nats/token]")
    axes.grid(color="0.9", axis="x")
    axes.set_axisbelow(True)
    return figure
