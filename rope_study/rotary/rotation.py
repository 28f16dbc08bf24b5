"""The rotation: which dimensions form a pair, the angle of each, and turning them by it.

head_dim = d, pairs k = 1..d/2. B batch, T length, N heads, H head_dim.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.checks import checked
from rope_study.errors import UserError

Array = jax.Array
Numbers = TypeVar("Numbers", jax.Array, np.ndarray)

LAYOUTS = ("half_split", "interleaved")


@checked
def pair_count(head_dim: int) -> int:
    """head_dim / 2, refusing what cannot be split into pairs."""
    if head_dim < 2 or head_dim % 2:
        raise UserError(
            f"head_dim={head_dim} cannot be split into pairs: it must be even and at least 2",
            "head_dim",
        )
    return head_dim // 2


def pairs(x: Numbers) -> tuple[Numbers, Numbers]:
    """Both members of every pair, [..., H] -> 2 x [..., H/2]: dimension i goes with i + H/2.

    The only place that knows the layout: probes and converters go through it.
    """
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def unpairs(first: Array, second: Array) -> Array:
    """The inverse of `pairs`: 2 x [..., H/2] -> [..., H]."""
    return jnp.concatenate([first, second], axis=-1)


def convert_layout(x: Numbers, source: str, target: str) -> Numbers:
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
    if source == target:  # also what has no pairs, such as weights of an MLP
        return x
    half = pair_count(np.shape(x)[-1] if np.ndim(x) else 0)
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
