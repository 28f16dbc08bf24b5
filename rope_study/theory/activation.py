"""Section 3: how the activation of a query on a key depends on their distance."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.rotary import Encoding, pair_count, pairs

# An encoding, or its inverse frequencies float64[d/2] in radians per token.
Frequencies = Encoding | ArrayLike


def frequencies_of(encoding: Frequencies, head_dim: int) -> np.ndarray:
    """float64[d/2], radians per token, of an encoding or as given.

    A scaling (YaRN) is left out: it only multiplies what the rotated pairs add.
    """
    if isinstance(encoding, Encoding):
        if not encoding.relative or encoding.trained:
            raise UserError(
                f"{encoding.name}: theory needs fixed frequencies and logits that depend on"
                " distance only, such as those of rope, p_rope or nope",
                "encoding",
            )
        return encoding.inverse_frequencies(head_dim)
    frequencies = np.asarray(encoding, np.float64)
    if frequencies.shape != (pair_count(head_dim),) or not np.isfinite(frequencies).all():
        raise UserError(
            f"inverse frequencies of shape {frequencies.shape} do not fit head_dim={head_dim}:"
            f" pass an encoding or {head_dim // 2} finite numbers in radians per token",
            "encoding",
        )
    return frequencies


def vector(x: ArrayLike, name: str, zero: bool = False) -> np.ndarray:
    """float64[d] of what was passed as `name`; zero only where that is allowed."""
    x = vectors(x, name)
    if x.ndim > 1 or not (zero or x.any()):
        raise UserError(f"{name} must be one finite vector that is not zero", name)
    return x


def vectors(x: ArrayLike, name: str) -> np.ndarray:
    """float64[..., d] of finite numbers that were passed as `name`."""
    x = np.asarray(x, np.float64)
    if not x.ndim:
        raise UserError(f"{name}={x} must be a vector, of head_dim numbers", name)
    pair_count(x.shape[-1])
    return x


def phases(frequencies: np.ndarray, distances: ArrayLike) -> np.ndarray:
    """float64[m, R] radians: how far each of [m] frequencies turns over each of [R] distances."""
    if np.ndim(distances) > 1:
        raise UserError(f"distances of shape {np.shape(distances)} must be [R]", "distances")
    with np.errstate(over="ignore"):
        turned = np.outer(frequencies, np.asarray(distances, np.float64))
    if np.abs(turned).max(initial=0.0) > 2**53:
        raise UserError(
            f"frequencies up to {np.abs(frequencies).max():g} rad/token turn so far over"
            f" {np.abs(distances).max():g} tokens that float64 does not know where they point",
            "frequencies",
        )
    return turned


def check_distance(distance: int, context: int, name: str) -> None:
    """Refuses what is no distance within a context of two tokens or more."""
    if not 0 <= distance < context or context < 2:
        raise UserError(
            f"{name}={distance} must lie in 0 .. context - 1, context={context}, >= 2", name
        )


@checked
def activations(
    query: ArrayLike, key: ArrayLike, encoding: Frequencies, distances: ArrayLike
) -> np.ndarray:
    """q^T R^-r k: the logit before scaling and softmax at each distance r = i - j.

    Args:
      query, key: float64[..., d], before rotation.
      encoding: or its inverse frequencies float64[d/2].
      distances: tokens, [R]; negative ones are keys after the query.

    Returns:
      float64[..., R].
    """
    query, key = vectors(query, "query"), vectors(key, "key")
    if query.shape[-1] != key.shape[-1]:
        raise UserError(
            f"query {query.shape} and key {key.shape} differ in head_dim, the last axis"
        )
    (q1, q2), (k1, k2) = pairs(query), pairs(key)
    frequencies = frequencies_of(encoding, query.shape[-1])
    angles = phases(frequencies, distances)
    return (q1 * k1 + q2 * k2) @ np.cos(angles) + (q1 * k2 - q2 * k1) @ np.sin(angles)


@checked
def rotate_key(x: ArrayLike, encoding: Frequencies, distance: float) -> np.ndarray:
    """R^distance x, float64[..., d]: every pair turned forward by distance * frequency."""
    x = vectors(x, "x")
    angles = phases(frequencies_of(encoding, x.shape[-1]), distance)[:, 0]
    turned = np.empty_like(x)
    (first, second), (to_first, to_second) = pairs(x), pairs(turned)
    to_first[...] = first * np.cos(angles) - second * np.sin(angles)
    to_second[...] = second * np.cos(angles) + first * np.sin(angles)
    return turned


# --- Prop. 3.1 --------------------------------------------------------------------------------


class Peak(NamedTuple):
    """A key, its activation float64[L] at distances 0..L-1, and its lead at the chosen one."""

    key: np.ndarray
    activation: np.ndarray
    lead: float  # over the best of all other distances; 0 where the maximum is not unique


@checked
def prop_3_1_key(query: ArrayLike, distance: int, encoding: Frequencies) -> np.ndarray:
    """The key float64[d] whose activation is largest at that distance behind the query.

    k = R^r q. A key is turned back against the query by its distance, so it has to start turned
    forward: R^-r q would peak r tokens AFTER the query, where causal attention reads nothing.
    """
    return rotate_key(vector(query, "query"), encoding, distance)


@checked
def prop_3_1(query: ArrayLike, distance: int, encoding: Frequencies, context: int) -> Peak:
    """Prop. 3.1: a query and a distance have a key whose activation is maximal there: no decay.

    At distance s the activation is sum_k |q^(k)|^2 cos(g_k (s - r)) <= |q|^2, with equality at
    s = r. The maximum is unique among all distances unless a whole number m > 0 of tokens brings
    every pair that the query uses back to its start: g_k m a multiple of 2 pi wherever q^(k) != 0.
    So it is unique as soon as the query uses one pair with g_k / 2 pi irrational, and every pair
    of RoPE is one: g_k is algebraic for a rational theta, pi is not. It is never unique for a
    query that lives in pairs with g_k = 0 only: all of NoPE, the unrotated pairs of p-RoPE.

    Args:
      query: float64[d], not zero.
      distance: 0 .. context - 1, where the maximum shall be.
      encoding: or its inverse frequencies float64[d/2].
      context: L, tokens.
    """
    check_distance(distance, context, "distance")
    key = prop_3_1_key(query, distance, encoding)
    activation = activations(query, key, encoding, np.arange(context))
    lead = activation[distance] - np.delete(activation, distance).max()
    return Peak(key, activation, float(lead))


# --- Prop. 3.2 and Fig. 2 ---------------------------------------------------------------------


class Gaussian(NamedTuple):
    """Draws of q^T R^-r k by distance, all float64[R], beside their closed forms."""

    distances: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray  # of the confidence interval of the mean, each distance for itself
    variance: np.ndarray
    expected_mean: np.ndarray  # 0
    expected_variance: np.ndarray  # d


@checked
def prop_3_2(
    encoding: Frequencies,
    head_dim: int,
    distances: ArrayLike,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Gaussian:
    """Prop. 3.2: for q, k ~ N(0, I), E[q^T R^-r k] = 0 at every distance r.

    The variance is d at every distance (not in the paper): R^-r k ~ N(0, I) again, so nothing
    about the activation of such a pair knows r. 1/sqrt(d) makes it 1. The same draws serve every
    distance, so neighbouring means err together.

    Args:
      encoding: or its inverse frequencies float64[d/2].
      head_dim: d.
      distances: tokens, [R].
      samples: draws of (q, k), at least 2.
      seed: of NumPy's default_rng.
      confidence: of the interval at one distance; 5 in 100 distances miss 0 at 0.95.
    """
    if samples < 2 or not 0 < confidence < 1:
        raise UserError(f"samples={samples} must be at least 2, confidence={confidence} in (0, 1)")
    q, k = np.random.default_rng(seed).standard_normal((2, samples, head_dim))
    drawn = activations(q, k, encoding, distances)
    variance = drawn.var(axis=0, ddof=1)
    half_width = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(variance / samples)
    zeros = np.zeros_like(variance)
    distances = np.asarray(distances)
    return Gaussian(distances, drawn.mean(0), half_width, variance, zeros, zeros + head_dim)


@checked
def fig_2a(encoding: Frequencies, head_dim: int, distances: ArrayLike) -> np.ndarray:
    """Fig. 2a: q = k = all ones has activation 2 sum_k cos(g_k r), float64[R], which decays.

    It is d at distance 0. It is also E[q^T R^-r q] for q ~ N(0, I): what decays is a query read
    by itself, not queries and keys that are independent.
    """
    frequencies = frequencies_of(encoding, head_dim)
    return 2 * np.cos(phases(frequencies, distances)).sum(0)
