"""Fig. 2 of the paper: activation against distance."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rope_study import theory
from rope_study.checks import checked
from rope_study.figures.style import BLACK, BLUE, LINE_COLOURS, LINE_STYLES, RED, new_figure
from rope_study.rotary import rope


@checked
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
    keys, queries = np.random.default_rng(seed).standard_normal((2, samples, head_dim))
    equal = theory.fig_2a(encoding, head_dim, distances) / head_dim
    drawn = theory.activations(queries, keys, encoding, distances) / math.sqrt(head_dim)

    source = f"{encoding.name}, head_dim={head_dim}; no model, no text"
    figure = new_figure((10, 4), f"Activation against distance\n{source}")
    left, right = figure.subplots(1, 2)
    left.set_title("q = k = all ones: decays", fontsize=10)
    left.plot(distances, equal, color=BLUE)
    left.set_ylabel("activation / activation at distance 0")
    right.set_title(f"q, k ~ N(0, I), {samples:,} draws, seed {seed}: does not decay", fontsize=10)
    for draw, colour, style in zip(drawn[:3], LINE_COLOURS[4:], LINE_STYLES[1:], strict=False):
        right.plot(distances, draw, color=colour, linestyle=style, linewidth=0.6)
    mean, deviation = drawn.mean(0), drawn.std(0)
    low, high = mean - deviation, mean + deviation
    right.fill_between(distances, low, high, color="0.8", label="mean ± s.d.")
    right.plot(distances, mean, color=BLACK, linewidth=2, label="mean")
    right.plot([], [], color=RED, linestyle="--", linewidth=1, label="single draws")
    right.set_ylabel("activation / sqrt(head_dim)")
    right.legend(loc="upper right", ncols=3, fontsize=8)
    right.set_ylim(-4.5, 4.5)
    for axes in (left, right):
        axes.axhline(0, color="0.5", linewidth=0.8, zorder=0)
        axes.set_xlabel("distance [tokens]")
    return figure
