"""Rotary encodings: how fast each pair of a head's dimensions turns, and the rotation itself.

Notation of Barbero et al. (ICLR 2025): head_dim = d, pairs k = 1..d/2, frequencies
g_k = theta^(-2(k-1)/d) radians per token, fastest first. B batch, T length, N heads, H head_dim.
"""

import dataclasses
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
      name: canonical spelling, such as "p_rope(p=0.75, theta=10000)"; equality goes by it.
      inverse_frequencies: head_dim -> float64[head_dim / 2], radians per token, fastest first;
        0 means that the pair is not rotated.
      attention_factor: multiplies cos and sin, so logits grow by its square (YaRN).
    """

    name: str
    inverse_frequencies: Callable[[int], np.ndarray] = dataclasses.field(compare=False, repr=False)
    attention_factor: float = 1.0

    def __call__(self, x: Array, positions: Array) -> Array:
        """Rotates x[B, T, N, H] by its positions int[B or 1, T]."""
        return rotate(x, positions, self.inverse_frequencies(x.shape[-1]), self.attention_factor)


# --- the encodings of the paper ---------------------------------------------------------------


def rope(theta: float = 10_000.0) -> Encoding:
    """RoPE (Su et al. 2021): every pair turns, g_k = theta^(-2(k-1)/d)."""
    _check_theta(theta)
    return Encoding(spell("rope", theta=theta), lambda d: _geometric(d, theta))


def nope() -> Encoding:
    """NoPE (Kazemnejad et al. 2023): no pair turns."""
    return Encoding(spell("nope"), lambda d: np.zeros(_pair_count(d)))


def p_rope(p: float = 0.75, theta: float = 10_000.0) -> Encoding:
    """p-RoPE (Barbero et al., section 6.1): the fraction p of highest frequencies turns.

    The exponent keeps the full head_dim, so what turns, turns as in RoPE: p=0 is NoPE, p=1 RoPE.
    """
    _check_fraction(p, "p_rope")
    _check_theta(theta)

    def frequencies(d: int) -> np.ndarray:
        return np.where(np.arange(_pair_count(d)) < int(p * d // 2), _geometric(d, theta), 0.0)

    return Encoding(spell("p_rope", p=p, theta=theta), frequencies)


def reversed_p_rope(p: float = 0.75, theta: float = 10_000.0) -> Encoding:
    """0.75-RoPE reversed of Table 2: the fraction p of LOWEST frequencies turns."""
    _check_fraction(p, "reversed_p_rope")
    _check_theta(theta)

    def frequencies(d: int) -> np.ndarray:
        still = _pair_count(d) - int(p * d // 2)
        return np.where(np.arange(_pair_count(d)) < still, 0.0, _geometric(d, theta))

    return Encoding(spell("reversed_p_rope", p=p, theta=theta), frequencies)


def partial_rope(p: float = 0.75, theta: float = 10_000.0) -> Encoding:
    """Partial rotary (GPT-NeoX), 0.75-RoPE partial of Table 2: p of the dimensions turn.

    The whole range of frequencies is squeezed into int(p * d // 2) pairs: the exponent divides by
    the rotated width. NeoX pairs dimensions inside its first p * d; here the pairs run across the
    full head as everywhere in this project, which is the same model with its dimensions permuted.
    """
    _check_fraction(p, "partial_rope")
    _check_theta(theta)

    def frequencies(d: int) -> np.ndarray:
        turning = int(p * d // 2)
        squeezed = _geometric(2 * turning, theta) if turning else np.zeros(0)
        return np.concatenate([squeezed, np.zeros(_pair_count(d) - turning)])

    return Encoding(spell("partial_rope", p=p, theta=theta), frequencies)


def _geometric(d: int, theta: float) -> np.ndarray:
    """float64[d / 2]: theta^(-2k/d) for k = 0..d/2-1."""
    return theta ** (-np.arange(_pair_count(d), dtype=np.float64) * 2 / d)


def _pair_count(head_dim: int) -> int:
    if head_dim < 2 or head_dim % 2:
        raise UserError(
            f"head_dim={head_dim} cannot be split into pairs: it must be even and at least 2;"
            " set config.model.head_dim"
        )
    return head_dim // 2


def _check_fraction(p: float, name: str) -> None:
    check_numbers(name, p=p)
    if not 0 <= p <= 1:
        raise UserError(f"{name}: p={p} must lie in [0, 1], the fraction of pairs that turn")


def _check_theta(theta: float) -> None:
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
      attention_factor: multiplies cos and sin.
    """
    if not inverse_frequencies.any() and attention_factor == 1.0:
        return x
    angles = phases(positions, inverse_frequencies)[..., None, :]
    cos, sin = jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor
    first, second = pairs(x.astype(jnp.float32))
    return unpairs(first * cos - second * sin, second * cos + first * sin).astype(x.dtype)
