"""Rotary encodings: how fast each pair of a head's dimensions turns, and the rotation itself.

Notation of Barbero et al. (ICLR 2025): head_dim = d, pairs k = 1..d/2, frequencies
g_k = theta^(-2(k-1)/d) radians per token, fastest first. B batch, T length, N heads, H head_dim.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.errors import UserError
from rope_study.spelling import check_numbers, spell

Array = jax.Array

# What the decoder asks of an encoding. Any such function plugs in:
# (x[B, T, N, H], positions int[B or 1, T]) -> x[B, T, N, H].
Rotary = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """An encoding as data: one frequency for every pair, and a factor on cos and sin.

    Attributes:
      name: canonical spelling, such as "p_rope(p=0.75, theta=10000)".
      inverse_frequencies: head_dim -> float64[head_dim / 2], radians per token, fastest first;
        0 means that the pair is not rotated. Encodings with two functions differ, whatever their
        names: compiled programs are kept by the encoding they were made for.
      attention_factor: multiplies cos and sin of the pairs that turn, so what they add to a logit
        grows by its square (YaRN). Pairs that stand still pass through, as in released models.
      theta: the base of the geometric frequencies it is made from; None where there is none.
      relative: whether logits depend on i - j only, not on where in the text i and j are.
    """

    name: str
    inverse_frequencies: Callable[[int], np.ndarray] = dataclasses.field(repr=False)
    attention_factor: float = 1.0
    theta: float | None = dataclasses.field(default=None, compare=False, repr=False)
    relative: bool = dataclasses.field(default=True, compare=False, repr=False)

    def __call__(self, x: Array, positions: Array) -> Array:
        """Rotates x[B, T, N, H] by its positions int[B or 1, T]."""
        return rotate(x, positions, self.inverse_frequencies(x.shape[-1]), self.attention_factor)


def spelled(make: Callable[..., Encoding]) -> Callable[..., Encoding]:
    """For constructors whose encodings are all said by their names: one object for each name."""
    known: dict[str, Encoding] = {}

    @functools.wraps(make)
    def one_of_a_name(*args, **kwargs) -> Encoding:
        made = make(*args, **kwargs)
        return known.setdefault(made.name, made)

    return one_of_a_name


# --- the encodings of the paper ---------------------------------------------------------------


@spelled
def rope(theta: float = 10_000.0) -> Encoding:
    """RoPE: every pair turns.

    Formula: g_k = theta^(-2(k-1)/d)
    Source: Su et al. 2021 (arXiv 2104.09864); theta = 10,000 in Gemma

    Args:
      theta: the base; the slowest pair turns once in about 2 pi theta tokens.
    """
    check_theta(theta)
    return Encoding(spell("rope", theta=theta), lambda d: geometric(d, theta), theta=theta)


@spelled
def nope() -> Encoding:
    """NoPE: no pair turns; order is known from the causal mask alone.

    Formula: g_k = 0
    Source: Kazemnejad et al. 2023 (arXiv 2305.19466)
    """
    return Encoding(spell("nope"), lambda d: np.zeros(pair_count(d)))


@spelled
def p_rope(p: float = 0.75, theta: float = 10_000.0) -> Encoding:
    """p-RoPE: the fraction p of highest frequencies turns.

    The exponent keeps the full head_dim, so what turns, turns as in RoPE: p=0 is NoPE, p=1 RoPE.

    Formula: g_k = theta^(-2(k-1)/d) for the first int(p d / 2) pairs, 0 after
    Source: Barbero et al. 2025 (arXiv 2410.06205), section 6.1

    Args:
      p: the fraction of pairs that turn, 0 to 1.
      theta: the base.
    """
    check_fraction(p, "p_rope")
    check_theta(theta)

    def frequencies(d: int) -> np.ndarray:
        return np.where(np.arange(pair_count(d)) < int(p * d // 2), geometric(d, theta), 0.0)

    return Encoding(spell("p_rope", p=p, theta=theta), frequencies, theta=theta)


@spelled
def reversed_p_rope(p: float = 0.75, theta: float = 10_000.0) -> Encoding:
    """p-RoPE reversed: the fraction p of LOWEST frequencies turns.

    Formula: g_k = theta^(-2(k-1)/d) for the last int(p d / 2) pairs, 0 before
    Source: Barbero et al. 2025 (arXiv 2410.06205), Table 2

    Args:
      p: the fraction of pairs that turn, 0 to 1.
      theta: the base.
    """
    check_fraction(p, "reversed_p_rope")
    check_theta(theta)

    def frequencies(d: int) -> np.ndarray:
        still = pair_count(d) - int(p * d // 2)
        return np.where(np.arange(pair_count(d)) < still, 0.0, geometric(d, theta))

    return Encoding(spell("reversed_p_rope", p=p, theta=theta), frequencies, theta=theta)


@spelled
def partial_rope(p: float = 0.75, theta: float = 10_000.0) -> Encoding:
    """Partial rotary: p of the dimensions turn, with the whole range of frequencies.

    The range is squeezed into fewer pairs: the exponent divides by the rotated width. NeoX pairs
    dimensions inside its first p d; here the pairs run across the full head as everywhere in this
    project, which is the same model with its dimensions permuted.

    Formula: g_k = theta^(-2(k-1)/r) for the first r/2 pairs, 0 after; r = p d
    Source: GPT-NeoX (Black et al. 2022, arXiv 2204.06745); Barbero et al. 2025, Table 2

    Args:
      p: the fraction of dimensions that turn, 0 to 1.
      theta: the base.
    """
    check_fraction(p, "partial_rope")
    check_theta(theta)
    name = spell("partial_rope", p=p, theta=theta)
    return Encoding(name, lambda d: squeezed(d, p, lambda r: geometric(r, theta)), theta=theta)


# --- what encodings are made of ---------------------------------------------------------------


def geometric(d: int, theta: float) -> np.ndarray:
    """float64[d / 2]: theta^(-2k/d) for k = 0..d/2-1."""
    return theta ** (-np.arange(pair_count(d), dtype=np.float64) * 2 / d)


def squeezed(d: int, p: float, frequencies: Callable[[int], np.ndarray]) -> np.ndarray:
    """float64[d / 2]: the frequencies of a head of p d dimensions, then zeros."""
    turning = int(p * d // 2)
    head = frequencies(2 * turning) if turning else np.zeros(0)
    return np.concatenate([head, np.zeros(pair_count(d) - turning)])


def pair_count(head_dim: int) -> int:
    """head_dim / 2, refusing what cannot be split into pairs."""
    if head_dim < 2 or head_dim % 2:
        raise UserError(
            f"head_dim={head_dim} cannot be split into pairs: it must be even and at least 2;"
            " set config.model.head_dim"
        )
    return head_dim // 2


def check_fraction(p: float, name: str, parameter: str = "p") -> None:
    """Refuses what is no fraction."""
    check_numbers(name, **{parameter: p})
    if not 0 <= p <= 1:
        raise UserError(
            f"{name}: {parameter}={p} must lie in [0, 1], the fraction of pairs that turn"
        )


def check_theta(theta: float) -> None:
    """Refuses what is no base."""
    check_numbers("rotary", theta=theta)
    if not (math.isfinite(theta) and theta > 1):
        raise UserError(f"theta={theta} must be a finite number above 1 (10_000 in Gemma)")


# --- the rotation -----------------------------------------------------------------------------


def pairs(x: Array) -> tuple[Array, Array]:
    """Both members of every pair, [..., H] -> 2 x [..., H/2]: dimension i goes with i + H/2.

    The only place that knows the layout: probes and converters go through it.
    """
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def unpairs(first: Array, second: Array) -> Array:
    """The inverse of `pairs`: 2 x [..., H/2] -> [..., H]."""
    return jnp.concatenate([first, second], axis=-1)


LAYOUTS = ("half_split", "interleaved")


def convert_layout(x: Array, source: str, target: str) -> Array:
    """Moves every pair to where another layout keeps it, along the last axis.

    Half-split (this project, Gemma, Transformers) pairs dimension i with i + H/2; interleaved
    (Meta's Llama, GPT-J) pairs 2i with 2i + 1. Converting the weights of q and of k, [..., H],
    leaves every logit as it was; v and o have no pairs and stay.

    Args:
      x: activations or weights [..., H], of NumPy or JAX.
      source, target: "half_split" or "interleaved".
    """
    for layout in (source, target):
        if layout not in LAYOUTS:
            raise UserError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if source == target:
        return x
    half = pair_count(x.shape[-1])
    split = (2, half) if source == "half_split" else (half, 2)
    return x.reshape(*x.shape[:-1], *split).swapaxes(-1, -2).reshape(x.shape)


def phases(positions: Array, inverse_frequencies: np.ndarray) -> Array:
    """Angles in [-pi, pi], f32[..., T, H/2], for integer positions[..., T].

    position * frequency in f32 is off by 2e-3 radians at 32k and 7e-2 at 1M. So the frequency,
    in turns per token, is split into a multiple of 2^-32 and a rest below 2^-33. The multiple is
    an int32 product that wraps around exactly once a turn; the rest is too small to lose digits.
    Measured against float64: below 1e-6 radians at every position up to 2^20.
    """
    turns = np.asarray(inverse_frequencies, np.float64) / (2 * np.pi)
    ticks = np.round(turns * 2**32)
    rest = (turns - ticks / 2**32).astype(np.float32)
    # Only whole turns are dropped here, and they do not rotate anything.
    ticks = ticks.astype(np.int64).astype(np.uint32).view(np.int32)
    positions = positions[..., None].astype(jnp.int32)
    wrapped = (positions * ticks).astype(jnp.float32) * 2.0**-32
    return (wrapped + positions.astype(jnp.float32) * rest) * (2 * np.pi)


def rotate(
    x: Array, positions: Array, inverse_frequencies: np.ndarray, attention_factor: float = 1.0
) -> Array:
    """Turns each pair of x[B, T, N, H] by position * frequency; f32 inside, one cast at the end.

    Args:
      x: queries or keys.
      positions: int[B or 1, T].
      inverse_frequencies: float64[H/2], radians per token, known at trace time.
      attention_factor: multiplies cos and sin of the pairs that turn.
    """
    if not inverse_frequencies.any():
        return x
    angles = phases(positions, inverse_frequencies)[..., None, :]
    scale = pair_scale(inverse_frequencies, attention_factor)
    return turn(x, jnp.cos(angles) * scale, jnp.sin(angles) * scale)


def pair_scale(inverse_frequencies: np.ndarray, attention_factor: float) -> np.ndarray:
    """f32[H/2]: the attention factor for pairs that turn, 1 for those that stand still."""
    return np.where(inverse_frequencies != 0, attention_factor, 1.0).astype(np.float32)


def turn(x: Array, cos: Array, sin: Array) -> Array:
    """Turns pairs of x[..., H] by cos and sin f32[..., H/2]; f32 inside, one cast at the end."""
    first, second = pairs(x.astype(jnp.float32))
    return unpairs(first * cos - second * sin, second * cos + first * sin).astype(x.dtype)
