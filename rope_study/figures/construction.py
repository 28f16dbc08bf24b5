"""Fig. 1: how one rotary frequency makes a head that attends a fixed number of tokens back."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from rope_study import theory
from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.figures.style import BLUE, COLOUR_MAP, RED, new_figure

QUERY, KEY = RED, BLUE
UP = math.pi / 2


@checked
def construction(
    frequency: float = 1.0, offset: int = 1, tokens: int = 6, epsilon: float = 0.1
) -> Figure:
    """Fig. 1, the construction of Thm. 5.3 with a single frequency g.

    Left, before rotation: one key for all tokens, and one query, the key turned back by offset g.
    Middle, after rotation: the key at j is turned by j g, so the last query points where the key
    `offset` tokens before it points, and the other keys point elsewhere. Right: attention, with
    |psi| the least that gives the last query 1 - epsilon on its target.

    Args:
      frequency: g, radians per token.
      offset: tokens back; 0 is a diagonal head, 1 a previous-token head.
      tokens: how many to draw, 2 to 12.
      epsilon: what the last query may leave to other tokens.

    Raises:
      UserError: values out of range, or a frequency at which no norm is enough.
    """
    if not 2 <= tokens <= 12:
        raise UserError(f"construction: tokens={tokens} must lie in 2..12, to be told apart")
    norm = theory.thm_5_3_norm([frequency], tokens, epsilon, offset)
    if math.isinf(norm):
        raise UserError(
            f"construction: at frequency={frequency} another token looks like the target; take a"
            " frequency that is neither 0 nor a divisor of full turns"
        )
    kind = {0: "diagonal", 1: "previous-token"}.get(offset, f"{offset} tokens back")
    figure = new_figure(
        (11, 4.3),
        f"How one frequency makes a positional head ({kind})\n"
        f"g = {frequency:g} rad/token, |psi| = {norm:.3g}, {tokens} tokens",
    )
    left, middle, right = figure.subplots(1, 3)
    places = np.arange(tokens)
    _before_rotation(left, places, frequency * offset)
    _after_rotation(middle, places, frequency, offset)
    attention = _attention(norm, frequency, offset, tokens)
    image = right.imshow(attention, cmap=COLOUR_MAP, vmin=0, vmax=1)
    right.set_title("attention", fontsize=10)
    right.set_xlabel("key position j [tokens]")
    right.set_ylabel("query position i [tokens]")
    right.set_xticks(places)
    right.set_yticks(places)
    figure.colorbar(image, ax=right, fraction=0.046, label="attention weight [1]")
    return figure


def _before_rotation(axes: Axes, places: np.ndarray, behind: float) -> None:
    for row, angle, colour in ((1, UP, KEY), (0, UP - behind, QUERY)):
        _arrows(axes, places, np.full(len(places), row), np.full(len(places), angle), colour, 0.7)
    axes.set_title("before rotation", fontsize=10)
    axes.set_yticks([1, 0], ["keys", "queries"])
    axes.set_xticks(places)
    axes.set_xlabel("position [tokens]")
    axes.set_xlim(-1, len(places))
    axes.set_ylim(-1, 2)
    axes.set_aspect("equal")


def _after_rotation(axes: Axes, places: np.ndarray, frequency: float, offset: int) -> None:
    last = places[-1]
    zeros = np.zeros(len(places))
    axes.add_patch(Circle((0, 0), 1, fill=False, color="0.85"))
    query = UP + frequency * (last - offset)
    # The query is drawn wide and below, so that both show where they point alike.
    _arrows(axes, zeros[:1], zeros[:1], np.array([query]), QUERY, 0.85, 0.035, headwidth=2)
    keys = UP + frequency * places
    _arrows(axes, zeros, zeros, keys, KEY, 1.0)
    for place, angle in zip(places, keys, strict=True):
        x, y = 1.17 * _direction(angle)
        axes.text(x, y, f"k{place}", color=KEY, ha="center", va="center")
    x, y = 1.45 * _direction(query)
    axes.text(x, y, f"q{last}", color=QUERY, ha="center", va="center")
    axes.set_title(f"after rotation: all keys, the query at {last}", fontsize=10)
    axes.set_xlim(-1.65, 1.65)
    axes.set_ylim(-1.65, 1.65)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _attention(norm: float, frequency: float, offset: int, tokens: int) -> np.ndarray:
    """float64[i, j] of logits |psi|² cos((j - i + offset) g); NaN where j > i may not be read."""
    distance = np.subtract.outer(np.arange(tokens), np.arange(tokens))
    logits = norm**2 * np.cos((offset - distance) * frequency)
    weights = np.where(distance >= 0, np.exp(logits - norm**2), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.where(distance >= 0, weights, np.nan)


def _arrows(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    angles: np.ndarray,
    colour: str,
    length: float,
    width: float = 0.012,
    headwidth: float = 3,
) -> None:
    u, v = length * _direction(angles)
    size = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": width}
    axes.quiver(x, y, u, v, color=colour, headwidth=headwidth, zorder=2, **size)


def _direction(angle: np.ndarray | float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])
