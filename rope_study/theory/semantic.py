"""Section 6: heads that attend by meaning. A frequency other than 0 carries it only so far.

A head prefers a target token to another one if its activation on the target, wherever that lies in
the context, is above its activation on the other, wherever that lies. A length fails if some
placement of the two, at distances r_t != r_o below it, breaks this.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.rotary import pairs
from rope_study.theory.activation import Frequencies, activations, frequencies_of, vector


class Failure(NamedTuple):
    """The shortest context (tokens) that fails, and the placement (distances) that shows it."""

    length: int
    target_distance: int
    other_distance: int


@checked
def thm_6_1(
    query: ArrayLike,
    target: ArrayLike,
    other: ArrayLike,
    encoding: Frequencies,
    limit: int,
    margin: float = 0.0,
) -> Failure | None:
    """Thm. 6.1: the shortest context in which the head loses its preference; None up to limit.

    That is, the smallest L with activation(target, r_t) - activation(other, r_o) <= margin for
    some r_t != r_o in 0..L-1. The two distances do not meet, so the search over all placements is
    exact: one running minimum, one running maximum. It serves any d; the theorem is for d = 2.

    Args:
      query, target, other: float64[d], the query and two keys, the same at every position.
      encoding: or its inverse frequencies float64[d/2].
      limit: tokens to search.
      margin: in units of the activation. 0: preference is lost. Above 0: it no longer leads by
        so much. Below 0: it is reversed by so much.
    """
    distances = np.arange(limit)
    query, target, other = _head(query, target, other)
    on_target = activations(query, target, encoding, distances)
    return _first_failure(on_target, activations(query, other, encoding, distances), margin)


def _head(
    query: ArrayLike, target: ArrayLike, other: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as float64[d]; the other token may be zero."""
    head = vector(query, "query"), vector(target, "target"), vector(other, "other", zero=True)
    if len({len(part) for part in head}) > 1:
        raise UserError(f"query, target and other differ in head_dim: {list(map(len, head))}")
    return head


def _first_failure(target: np.ndarray, other: np.ndarray, margin: float) -> Failure | None:
    """The first place n where one of the two at n and the other before n break the margin."""
    lowest = np.minimum.accumulate(target)[:-1]  # before n = 1, 2, ...
    highest = np.maximum.accumulate(other)[:-1]
    target_at_n = target[1:] - highest <= margin
    fails = target_at_n | (lowest - other[1:] <= margin)
    if not fails.any():
        return None
    n = int(fails.argmax()) + 1
    if target_at_n[n - 1]:
        return Failure(n + 1, n, int(other[:n].argmax()))
    return Failure(n + 1, int(target[:n].argmin()), n)


# --- bounds for every head --------------------------------------------------------------------


@checked
def thm_6_1_bound(frequency: float) -> int:
    """d = 2: a context (tokens) in which every head of this frequency has lost its preference.

    Half a turn is as long as meaning lasts: ceil(pi / g) + 2 tokens, for g <= pi / 2.
    Proof: the target's activation is <= 0 on half of the circle, and steps of g <= pi neither jump
    over it nor stay out of it for more than ceil(pi / g) of them. So among ceil(pi / g) + 1
    distances some r_t has activation <= 0, and likewise some r_o has >= 0 on the other token. If
    the two are one and the same distance, the one more token has another: for g <= pi / 2 the
    steps stay at least two at a time. Above pi / 2, at most six distances: two runs of three.
    Reached within two tokens by a target a quarter turn ahead of the query and the other opposite.

    Not density of irrational rotations, as in the paper, but less is needed: any frequency
    but 0. `thm_6_1_reversal_bound` uses density.

    Args:
      frequency: g, radians per token, no multiple of 2 pi.
    """
    g = _folded(frequency)
    return math.ceil(math.pi / g) + 2 if g <= math.pi / 2 else 6


@checked
def thm_6_1_reversal_bound(frequency: float, reversal: float) -> int:
    """d = 2: a context (tokens) that turns every preference around.

    Some placement there has activation <= -c |q| |target| on the target and >= c |q| |other| on
    the other token. Both hold on an arc of 2 arccos c radians, visited once in each of two runs.

    Args:
      frequency: g, radians per token, no rational part of 2 pi.
      reversal: c, 0 to below 1.
    """
    if not 0 <= reversal < 1:
        raise UserError(
            f"reversal={reversal} must lie in [0, 1): 1 is approached, not reached", "reversal"
        )
    return 2 * thm_6_1_visits(frequency, 2 * math.acos(reversal))


@checked
def thm_6_1_visits(frequency: float, arc: float) -> int:
    """How many consecutive distances visit every closed arc of so many radians, wherever it lies.

    Density of an irrational rotation, made a number. Steps no longer than the arc cannot jump
    over it: ceil((2 pi - arc) / g) + 1. Else by the three-gap theorem (Sos 1958): with p_n / q_n
    the convergents of g / 2 pi, q_n + q_(n+1) points leave no gap above |q_n g - 2 pi p_n|.

    Raises:
      UserError: the rotation comes back to its start before it has visited every such arc.
    """
    g = _folded(frequency)
    if not 0 < arc <= 2 * math.pi:
        raise UserError(f"arc={arc} must lie in (0, 2 pi] radians", "arc")
    if g <= arc:
        return math.ceil((2 * math.pi - arc) / g) + 1
    turns = g / (2 * math.pi)
    previous, denominator, rest = 0, 1, turns  # denominators q_(n-1) and q_n
    while rest > 1e-9:  # less is a rational part of a turn, to what float64 can tell
        gap = 2 * math.pi * abs(denominator * turns - round(denominator * turns))
        following = math.floor(1 / rest) * denominator + previous
        previous, denominator, rest = denominator, following, (1 / rest) % 1
        if denominator > 10**7:  # float64 no longer knows the quotients
            break
        if gap <= arc:
            return previous + denominator
    raise UserError(
        f"frequency={frequency} does not visit every arc of {arc:g} radians within 10 million"
        " tokens: it is, or is close to, a rational part of a turn",
        "frequency",
    )


@checked
def thm_6_1_bound_any_dimension(
    query: ArrayLike, target: ArrayLike, other: ArrayLike, encoding: Frequencies, margin: float
) -> float:
    """Any d: no context longer than this many tokens keeps a lead of margin > 0 (not in the paper).

    (1 / margin) sum_k |q^(k)| (|target^(k)| + |other^(k)|) / |sin(g_k / 2)|
    Proof: over L distances |sum_r e^(i g r)| <= 1 / |sin(g / 2)|, so the mean lead over all
    placements with r_t != r_o, which is the difference of the two means, is at most that sum / L
    without the margin; some placement is no better than the mean. Attention above 1 - epsilon
    needs a margin of log((1 - epsilon) / epsilon). inf where the head uses a pair with g_k a
    multiple of 2 pi: its mean need not vanish.
    """
    query, target, other = _head(query, target, other)
    if margin <= 0:
        raise UserError(f"margin={margin} must be above 0 in units of the activation", "margin")
    frequencies = frequencies_of(encoding, query.shape[-1])
    products = _norms(query) * (_norms(target) + _norms(other))
    used = products > 0
    rate = np.abs(np.sin(frequencies[used] / 2))
    return math.inf if (rate < 1e-15).any() else float((products[used] / rate).sum() / margin)


@checked
def thm_6_1_pairs(encoding: Frequencies, head_dim: int, context: int) -> int:
    """How many pairs can carry meaning alone over that context: g_k <= pi / L, or 0.

    To within two tokens of L: such a pair has a head that lasts, a faster one has none.
    """
    return int((frequencies_of(encoding, head_dim) * context <= math.pi).sum())


# --- past d = 2: a search ---------------------------------------------------------------------


@checked
def thm_6_1_search(
    frequencies: ArrayLike,
    margins: Sequence[float] = (0.0,),
    heads: int = 32,
    limit: int = 100_000,
    seed: int = 0,
) -> np.ndarray:
    """Failing lengths float64[margins, heads] of random heads; inf where none up to limit.

    Numerical evidence on drawn heads, no proof. Query and both keys are N(0, I) in the pairs of
    the given frequencies, exchanged where the other token would be preferred at equal distance.

    Args:
      frequencies: g_k, [m], radians per token.
      margins: as in `thm_6_1`, in units of sum_k |q^(k)| (|target^(k)| + |other^(k)|), the largest
        lead that there can be: 0 is lost, -0.5 reversed by half of it.
      heads: how many to draw.
      limit: tokens to search; memory goes as heads x limit.
      seed: of NumPy's default_rng.
    """
    frequencies = np.atleast_1d(np.asarray(frequencies, np.float64))
    drawn = np.random.default_rng(seed).standard_normal((3, heads, 2 * len(frequencies)))
    query, target, other = drawn
    swap = ((target - other) * query).sum(-1, keepdims=True) < 0
    target, other = np.where(swap, other, target), np.where(swap, target, other)
    largest = (_norms(query) * (_norms(target) + _norms(other))).sum(-1)
    on_target = activations(query, target, frequencies, np.arange(limit))
    on_other = activations(query, other, frequencies, np.arange(limit))
    lengths = np.full((len(margins), heads), np.inf)
    for row, margin in enumerate(margins):
        for head in range(heads):
            failure = _first_failure(on_target[head], on_other[head], margin * largest[head])
            if failure is not None:
                lengths[row, head] = failure.length
    return lengths


# --- section 6.1: p-RoPE ----------------------------------------------------------------------


@checked
def sec_6_1_channel(encoding: Frequencies, head_dim: int) -> np.ndarray:
    """A unit vector float64[d] in the unrotated pairs: a channel that no distance weakens.

    As query and as key of the target its activation is 1 at every distance.

    Raises:
      UserError: every pair is rotated.
    """
    unrotated = frequencies_of(encoding, head_dim) == 0
    if not unrotated.any():
        raise UserError(
            "every pair of this encoding is rotated: p_rope with p < 1 leaves some unrotated",
            "encoding",
        )
    channel = np.zeros(head_dim)
    pairs(channel)[0][unrotated] = unrotated.sum() ** -0.5
    return channel


def _norms(x: ArrayLike) -> np.ndarray:
    """2-norm of every pair, float64[..., d] -> float64[..., d/2]."""
    return np.hypot(*pairs(np.asarray(x, np.float64)))


def _folded(frequency: float) -> float:
    """The same rotation seen from the other side, in (0, pi]: cosines do not know the direction."""
    g = abs(math.remainder(frequency, 2 * math.pi))
    if g < 1e-15:
        raise UserError(f"frequency={frequency} does not rotate: it never fails", "frequency")
    return g
