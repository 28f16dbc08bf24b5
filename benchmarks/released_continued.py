"""The table and the figures of continued training, from results/released/smollm2/continued alone.

benchmarks/continued_training.py wrote the files; released_tables.py prints and draws these with the
others.
"""

import json
from pathlib import Path

import numpy as np
import xarray
from matplotlib.figure import Figure

from rope_study.figures.style import label_pairs, line_style, new_figure

FOLDER = Path(__file__).parents[1] / "results" / "released" / "smollm2" / "continued"
# In this order, and by these names.
FILES = {
    "RoPE": "rope_theta100000",
    "0.75-RoPE": "p_rope_p0.75_theta100000",
    "0.5-RoPE": "p_rope_p0.5_theta100000",
    "NoPE": "nope",
}
TRAINED, LONGER = 8192, 32_768  # tokens: what was trained on, and what was read besides


def runs() -> dict[str, xarray.Dataset]:
    """What was measured, by encoding."""
    return {name: xarray.load_dataset(FOLDER / f"{file}.nc") for name, file in FILES.items()}


def tokens_read() -> int:
    """How many tokens each was trained on."""
    run = runs()["RoPE"]
    return int(run.trained[-1]) * json.loads(run.config)["data"]["batch_size"] * TRAINED


def losses() -> tuple[list[str], list[list[str]]]:
    """Head and rows: nats a token before and after, the difference to RoPE, and past the length."""
    head = ["encoding", "as released", "trained on", "minus RoPE"]
    head += [
        "32,768, as released",
        "trained on",
        "0 to 8,192",
        "to 16,384",
        "to 24,576",
        "to 32,768",
    ]
    rows = []
    rope = float(runs()["RoPE"][f"loss_{TRAINED}"][1].mean())
    for name, run in runs().items():
        trained, longer = (run[f"loss_{length}"].values for length in (TRAINED, LONGER))
        quarters = longer[1].reshape(4, -1).mean(axis=1)
        rows.append([
            name, *(f"{loss:.3f}" for loss in trained.mean(axis=1)),
            f"{trained[1].mean() - rope:+.4f}",
            *(f"{loss:.3f}" for loss in (*longer.mean(axis=1), *quarters)),
        ])  # fmt: skip
    return head, rows


def by_position() -> Figure:
    """Loss by position past the trained length, before training and after, a line an encoding."""
    figure = new_figure((10, 4.2), "SmolLM2 135M under other encodings: held-out loss by position")
    axes = figure.subplots(1, 2, sharey=True)
    for i, (name, run) in enumerate(runs().items()):
        places = run[f"position_{LONGER}"].values
        for when, ax in enumerate(axes):
            loss, error = (run[f"{what}_{LONGER}"].values[when] for what in ("loss", "error"))
            ax.plot(places, loss, label=name, **line_style(i))
            ax.fill_between(
                places, loss - error, loss + error, color=line_style(i)["color"], alpha=0.15
            )
    titles = "with the weights as released", f"after {tokens_read() / 1e6:.0f}M tokens"
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
        ax.axvline(TRAINED, color="0.6", linewidth=0.8)
        ax.set_xticks(np.arange(0, LONGER + 1, TRAINED))
        ax.set_xlabel("position [tokens]; 8,192 are trained on")
        ax.grid(color="0.92")
    axes[0].set_ylabel("loss [nats/token]")
    axes[1].legend(fontsize=9, handlelength=4)
    return figure


def usage() -> Figure:
    """Mean norm of every pair over layers and heads, as released and after training on."""
    figure = new_figure((10, 4.6), "SmolLM2 135M trained on under other encodings: pair norms")
    for ax, quantity in zip(figure.subplots(1, 2), "qk", strict=True):
        for i, (name, run) in enumerate(runs().items()):
            before, after = run[quantity].mean("layer").values
            if name == "RoPE":
                ax.plot(before, color="0.7", linewidth=4, label="RoPE, as released")
                label_pairs(ax, run.inverse_frequency.values, ticks=5)
            ax.plot(after, label=name, **line_style(i))
        ax.set_title({"q": "queries", "k": "keys"}[quantity], fontsize=10)
        ax.set_ylim(bottom=0)
        ax.grid(color="0.92")
    figure.axes[0].set_ylabel("mean 2-norm [dimensionless]")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, handlelength=4)
    return figure
