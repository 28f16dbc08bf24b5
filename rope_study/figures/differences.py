"""Differences in loss between encodings, seed by seed."""

import numpy as np
from matplotlib.figure import Figure

from rope_study.figures.style import LINE_COLOURS, new_figure


def paired_differences(rows: list[dict]) -> Figure:
    """Held-out loss minus the first encoding's with the same seed, nats/token, and 95 % intervals.

    Args:
      rows: "encodings" of a study's results: name, and but for the first "difference",
        "difference_interval" (half its width) and "differences", seed -> difference.
    """
    compared = [row for row in rows if "difference" in row]
    figure = new_figure(
        (8, 1.8 + 0.5 * len(compared)),
        f"Held-out loss minus that of {rows[0]['name']}\n"
        f"{len(compared[0]['differences'])} seeds, paired; bars are 95 % intervals of the mean",
    )
    axes = figure.subplots()
    for place, row in enumerate(compared):
        by_seed = list(row["differences"].values())
        axes.plot(by_seed, np.full(len(by_seed), place), "o", color="0.6", markersize=5)
        axes.errorbar(
            row["difference"], place, xerr=row["difference_interval"], fmt="D", capsize=4,
            color=LINE_COLOURS[2], markersize=5,
        )  # fmt: skip
    axes.axvline(0, color="0.3", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(compared)), [row["name"] for row in compared])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.set_xlabel("difference in held-out loss [nats/token]")
    axes.grid(color="0.9", axis="x")
    axes.set_axisbelow(True)
    return figure
