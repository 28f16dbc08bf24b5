"""How far encodings rotate their pairs: the two ends of RoPE, and cycles over a context."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from rope_study.checks import checked
from rope_study.figures.style import COLOUR_MAP, as_text, line_style, new_figure
from rope_study.rotary import Encoding, describe, rope


@checked
def encoding_cycles(
    encodings: Sequence[str | Encoding], head_dim: int = 256, context: int = 8192
) -> Figure:
    """Sec. 6.1, what is rotated: cycles of each pair over the context, c_k = g_k L / 2 pi.

    The legend counts the pairs that complete a cycle. Unrotated pairs are marked below the axis
    of cycles, a row for each encoding.
    """
    described = [describe(encoding, head_dim, context) for encoding in encodings]
    below = 0.2 * len(described)  # inches for the marks, and as much again for the legend
    title = f"Cycles over the context: head_dim={head_dim}, L={context:,} tokens"
    figure = new_figure((9, 5 + 2 * below), title)
    axes, unrotated = figure.subplots(2, 1, sharex=True, height_ratios=(4, below))
    for index, encoding in enumerate(described):
        line, cycles = line_style(index), encoding.cycles
        name = textwrap.shorten(
            encoding.name, 120, placeholder=" ...)"
        )  # LongRoPE lists every pair
        label = f"{name}: {np.sum(cycles >= 1)} of {len(cycles)} complete a cycle"
        # Encodings that agree lie on each other: the first is drawn widest.
        width = 1.2 + 3 * (1 - index / len(described))
        wrapped = "\n  ".join(textwrap.wrap(label, 60))
        rotated = np.where(cycles > 0, cycles, np.nan)
        axes.plot(rotated, **line, linewidth=width, label=as_text(wrapped))
        pairs = np.flatnonzero(cycles == 0)
        marks = {"marker": "|", "s": 24, "color": line["color"]}
        unrotated.scatter(pairs, np.full(len(pairs), -index), **marks)
    axes.axhline(1, color="black", linewidth=1)
    above = {"textcoords": "offset points", "ha": "right", "va": "bottom", "fontsize": 9}
    axes.annotate("one cycle", (1, 1), (-4, 2), xycoords=("axes fraction", "data"), **above)
    axes.set_yscale("log")
    axes.set_ylabel("cycles over the context, $c_k$")
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, handlelength=5)
    unrotated.set_ylim(0.6 - len(described), 0.6)
    unrotated.set_yticks([])
    unrotated.set_ylabel("not\nrotated", rotation=0, ha="right", va="center", fontsize=9)
    unrotated.set_xlabel("rotary pair, fastest first")
    return figure


@checked
def turning(encoding: Encoding | None = None, head_dim: int = 256, tokens: int = 64) -> Figure:
    """Sec. 2, what RoPE does: the fastest, a middle and the slowest pair over the same tokens.

    Points are the directions in which a pair points at each token, on the unit circle.
    """
    encoding = encoding or rope()
    frequencies = encoding.inverse_frequencies(head_dim)
    title = f"Where a pair points, token by token\n{encoding.name}, head_dim={head_dim}"
    figure = new_figure((9, 3.9), title)
    position = ScalarMappable(Normalize(0, tokens - 1), COLOUR_MAP)
    shown = (0, len(frequencies) // 2, len(frequencies) - 1)
    for axes, pair in zip(figure.subplots(1, 3), shown, strict=True):
        angles = frequencies[pair] * np.arange(tokens)
        axes.add_patch(Circle((0, 0), 1, fill=False, color="0.8"))
        colours = {"c": np.arange(tokens), "cmap": position.cmap, "norm": position.norm}
        axes.scatter(np.cos(angles), np.sin(angles), s=22, zorder=2, **colours)
        turns = frequencies[pair] * tokens / (2 * np.pi)
        speed = f"pair {pair}: {frequencies[pair]:.2g} radians per token"
        axes.set_title(f"{speed}\n{turns:.2g} turns in {tokens} tokens", fontsize=9)
        axes.set_aspect("equal")
        axes.set_xlim(-1.15, 1.15)
        axes.set_ylim(-1.15, 1.15)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(position, ax=figure.axes, fraction=0.03, label="position [tokens]")
    return figure
