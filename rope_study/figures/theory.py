"""Figures of the paper's statements (rope_study.theory): one function each, no model and no text.

Every function returns a matplotlib Figure, in the style of rope_study.figures.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rope_study import theory
from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GUIDE,
    LINE_COLOURS,
    LINE_STYLES,
    ORANGE,
    RED,
    new_figure,
)
from rope_study.rotary import Encoding, pair_count, rope


@checked
def prop_3_1(
    distances: Sequence[int] = (0, 40, 100),
    encoding: Encoding | None = None,
    head_dim: int = 256,
    context: int = 160,
    seed: int = 0,
) -> Figure:
    """Prop. 3.1: one query, and a key for each distance whose activation peaks there."""
    encoding = encoding or rope()
    query = np.random.default_rng(seed).standard_normal(head_dim)
    figure = new_figure(
        (7, 4),
        "Prop. 3.1: a key for any distance\n"
        f"one query ~ N(0, I), seed {seed}; {encoding.name}, head_dim={head_dim}",
    )
    axes = figure.subplots()
    lines = zip(distances, LINE_COLOURS[2:], LINE_STYLES, strict=False)
    for distance, colour, style in lines:
        peak = theory.prop_3_1(query, distance, encoding, context)
        relative = peak.activation / (query @ query)
        label = f"key for distance {distance}"
        axes.plot(relative, color=colour, linestyle=style, linewidth=1.3, label=label)
        axes.plot(distance, 1, marker="o", color=colour, clip_on=False)
    axes.axhline(1, **GUIDE)
    axes.axhline(0, **GUIDE)
    axes.set_xlim(0, context - 1)
    axes.set_xlabel("distance from query back to key [tokens]")
    axes.set_ylabel("activation / |query|²")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=4)
    return figure


@checked
def prop_3_2(
    encoding: Encoding | None = None,
    head_dim: int = 256,
    context: int = 8192,
    samples: int = 10_000,
    seed: int = 0,
) -> Figure:
    """Prop. 3.2 and Fig. 2: all ones decay; the mean of independent Gaussians is 0 throughout."""
    encoding = encoding or rope()
    distances = np.unique(np.geomspace(1, context - 1, 120).round())
    drawn = theory.prop_3_2(encoding, head_dim, distances, samples, seed)
    figure = new_figure(
        (10, 4.2), f"Prop. 3.2: does the activation decay?\n{encoding.name}, head_dim={head_dim}"
    )
    left, right = figure.subplots(1, 2)
    left.set_title("one scale", fontsize=10)
    ones = theory.fig_2a(encoding, head_dim, distances)
    left.plot(distances, ones / head_dim, color=BLUE, label="q = k = all ones: decays")
    mean = drawn.mean / head_dim
    left.plot(distances, mean, color=RED, linestyle="--", label="mean over q, k ~ N(0, I)")
    left.set_ylabel("activation / head_dim")
    left.legend(fontsize=9, handlelength=4)
    right.set_title(f"the mean alone, {samples:,} draws, seed {seed}", fontsize=10)
    scale = math.sqrt(head_dim)
    low, high = drawn.mean - drawn.half_width, drawn.mean + drawn.half_width
    band = "95 % interval, each distance for itself"
    right.fill_between(distances, low / scale, high / scale, color="0.85", label=band)
    right.plot(distances, drawn.mean / scale, color=RED, linestyle="--", label="mean")
    right.plot(distances, drawn.expected_mean, color=BLACK, label="Prop. 3.2: 0")
    right.set_ylabel("mean activation / sqrt(head_dim)\n(one draw has s.d. 1)")
    largest = 1.9 * float(np.abs([low, high]).max()) / scale
    right.set_ylim(-largest, largest)
    right.legend(fontsize=9, handlelength=4, loc="upper left")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.axhline(0, **GUIDE)
        axes.set_xlabel("distance [tokens]")
    return figure


@checked
def thm_5_3(
    contexts: Sequence[int] = (16, 128, 1024),
    epsilon: float = 0.1,
    encoding: Encoding | None = None,
    head_dim: int = 256,
) -> Figure:
    """Thm. 5.3: the norm of psi that a diagonal head needs, by frequency and by their number.

    Left: one frequency, a line up to one turn over the context, where higher is sharper, and
    points past it. Right: psi spread evenly over the m fastest pairs of the encoding.
    """
    encoding = encoding or rope()
    if not contexts or min(contexts) < 2:
        raise UserError(f"thm_5_3: contexts={contexts} must be 2 tokens or more each", "contexts")
    figure = new_figure(
        (10, 4.8), f"Thm. 5.3: norm for attention {1 - epsilon:g} on the query's own position"
    )
    left, right = figure.subplots(1, 2)
    left.set_title("one frequency", fontsize=10)
    right.set_title(f"the m fastest pairs of {encoding.name}", fontsize=10)
    counts = np.unique(np.geomspace(1, pair_count(head_dim), 24).round().astype(int))
    fastest = encoding.inverse_frequencies(head_dim)
    lines = zip(contexts, (BLUE, ORANGE, BLACK), LINE_STYLES, "ox^", strict=False)
    for context, colour, style, marker in lines:
        line = {"color": colour, "linestyle": style, "linewidth": 1.5}
        turn = 2 * math.pi / context
        before = np.geomspace(min(2e-3, turn), turn, 20)
        norms = [theory.thm_5_3_norm(g, context, epsilon) for g in before]
        left.plot(before, norms, label=f"L = {context:,} tokens", **line)
        past = np.geomspace(turn, math.pi, 12 + int(60 * math.log10(math.pi / turn)))[1:-1]
        norms = [theory.thm_5_3_norm(g, context, epsilon) for g in past]
        left.plot(past, _gaps(norms), marker, color=colour, markersize=2.5)
        floor = theory.thm_5_3_floor(context, epsilon)
        left.hlines(floor, turn, math.pi, color=colour, linewidth=0.8)
        norms = [theory.thm_5_3_norm(fastest[:m], context, epsilon) for m in counts]
        right.plot(counts, _gaps(norms), marker=marker, markersize=3, **line)
    left.plot([], [], ".", color="0.4", label="past one turn over the context, g > 2 pi / L")
    left.plot([], [], color="0.4", linewidth=0.8, label="least that one frequency needs there")
    left.set_xlabel("frequency g [radians per token]")
    right.set_xlabel(f"number of pairs m (of {pair_count(head_dim)}), norm spread evenly")
    for axes in (left, right):
        axes.set_ylabel("|psi| (logits |psi|² cos, not scaled)")
        axes.loglog()
        axes.grid(color="0.9")
    _plain_ticks(right, [1, 2, 4, 8, 16, 32, 64, 128])
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=4)
    return figure


# Heads of one frequency: (query, target key, other key), and what they are.
HEADS = {
    "other key half as long, same direction": ([1, 0], [1, 0], [0.5, 0]),
    "target a quarter turn ahead, other opposite": ([0, 1], [-1, 0], [1, 0]),
}


@checked
def thm_6_1(frequencies: ArrayLike | None = None) -> Figure:
    """Thm. 6.1 for d = 2: the context in which a semantic head fails, by its frequency.

    Measured for two heads; the bounds hold for every head. Upright lines are RoPE's slowest pair
    at head_dim 256 for two bases.
    """
    g = np.geomspace(1e-6, 1, 40) if frequencies is None else np.atleast_1d(frequencies)
    figure = new_figure((7.5, 5), "Thm. 6.1: how far one frequency carries meaning (d = 2)")
    axes = figure.subplots()
    # Every head fails within the bound, so that is as far as there is to search.
    bounds = [theory.thm_6_1_bound(frequency) for frequency in g]
    for (name, head), colour, style in zip(HEADS.items(), (BLUE, BLACK), ("--", "-"), strict=True):
        lengths = [_failing_length(head, *limits) for limits in zip(g, bounds, strict=True)]
        axes.plot(g, lengths, color=colour, linestyle=style, label=name)
    axes.plot(g, bounds, ":", color=RED, linewidth=2.5, label="bound: ceil(pi / g) + 2")
    reversal = [theory.thm_6_1_reversal_bound(frequency, 0.9) for frequency in g]
    label = "bound: preference reversed by 90 %"
    axes.plot(g, reversal, linestyle="-.", color=GREEN, label=label)
    for theta, name in ((10_000, "10k"), (500_000, "500k")):
        slowest = rope(theta).inverse_frequencies(256)[-1]
        if slowest >= g.min():
            axes.axvline(slowest, **GUIDE)
            upright = {"xycoords": ("data", "axes fraction"), "fontsize": 8, "rotation": 90}
            text = f"slowest pair, theta={name}"
            axes.annotate(text, (slowest, 0.03), (3, 0), textcoords="offset points", **upright)
    for length in (8192, 131_072):
        axes.axhline(length, **GUIDE)
        axes.text(g.max(), length, f"{length:,}", fontsize=8, ha="right", va="bottom")
    axes.loglog()
    axes.set_xlabel("frequency g [radians per token]")
    axes.set_ylabel("shortest context that fails [tokens]")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, handlelength=4)
    return figure


@checked
def thm_6_1_by_number(
    numbers: Sequence[int] = (1, 2, 3, 4, 5, 6),
    slowest: float = 0.01,
    reversals: Sequence[float] = (0.0, 0.5, 0.8),
    heads: int = 32,
    limit: int = 100_000,
    seed: int = 0,
) -> Figure:
    """Thm. 6.1 past d = 2, measured on random heads: failing length by number of frequencies.

    Frequencies lie between `slowest` and ten times that, evenly in their logarithm. Lines are
    medians, bars the middle half of the heads; heads that last longer than `limit` count as limit.
    """
    if not numbers or slowest <= 0:
        raise UserError(f"thm_6_1_by_number: numbers={numbers}, slowest={slowest} must be above 0")
    figure = new_figure(
        (7.5, 5),
        "Thm. 6.1 past d = 2: numerical evidence, no proof\n"
        f"{heads} random heads, seed {seed}; frequencies from {slowest:g} up to {10 * slowest:g}",
    )
    axes = figure.subplots()
    margins = [-reversal for reversal in reversals]
    lengths = [
        theory.thm_6_1_search(slowest * _spread(m), margins, heads, limit, seed) for m in numbers
    ]
    searched = np.minimum(lengths, limit)  # [m, reversal, head]
    low, middle, high = np.quantile(searched, (0.25, 0.5, 0.75), axis=-1)
    lines = zip(reversals, (BLACK, BLUE, RED), LINE_STYLES, "o^s", strict=False)
    for index, (reversal, colour, style, marker) in enumerate(lines):
        label = f"reversed by {reversal:.0%}" if reversal else "preference lost"
        places = np.asarray(numbers) + 0.06 * (index - 1)
        error = [bars[:, index] for bars in (middle - low, high - middle)]
        line = {"color": colour, "linestyle": style, "marker": marker, "capsize": 3}
        axes.errorbar(places, middle[:, index], error, label=label, **line)
    axes.axhline(math.pi / slowest, **GUIDE)
    right = {"fontsize": 8, "va": "bottom", "ha": "right"}
    axes.text(numbers[-1] + 0.2, math.pi / slowest, "pi / slowest frequency", **right)
    axes.axhline(limit, **GUIDE)
    axes.text(numbers[0], limit, "end of the search", fontsize=8, va="bottom")
    axes.set_yscale("log")
    axes.set_xticks(numbers)
    axes.set_xlabel("number of frequencies m (head_dim = 2m)")
    axes.set_ylabel("shortest context that fails [tokens]")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, handlelength=4)
    return figure


def _failing_length(head: tuple, frequency: float, limit: int) -> float:
    """The shortest context that fails; NaN where there is none up to the limit."""
    query, target, other = head
    failure = theory.thm_6_1(query, target, other, [frequency], limit)
    return math.nan if failure is None else failure.length


def _spread(count: int) -> np.ndarray:
    """float64[count] from 1 to below 10, evenly in the logarithm; the first is always 1."""
    return 10 ** (np.arange(count) / count)


def _gaps(norms: Sequence[float]) -> np.ndarray:
    """inf as NaN, so that a line breaks where there is no such head."""
    return np.where(np.isfinite(norms), norms, np.nan)


def _plain_ticks(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
