"""What an encoding is: one frequency for every pair of a head's dimensions.

Notation of Barbero et al. (ICLR 2025): head_dim = d, pairs k = 1..d/2, frequencies
g_k = theta^(-2(k-1)/d) radians per token, fastest first. B batch, T length, N heads, H head_dim.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np

from rope_study.checks import check
from rope_study.errors import UserError
from rope_study.registry import Component, Registry
from rope_study.rotary.rotation import pair_count, rotate

Array = jax.Array

# What the decoder asks of an encoding. Any such function plugs in:
# (x[B, T, N, H], positions int[B or 1, T]) -> x[B, T, N, H].
Rotary = Callable[[Array, Array], Array]

ENCODINGS = Registry("encoding")


class Encoding(Component, abc.ABC):
    """Base class: a vector of frequencies, and a factor on cos and sin.

    Attributes:
      relative: whether logits depend on i - j only, not on where in the text i and j are.
      trained: whether the frequencies change in training; then it is called with the layer's arrays
        as a third argument.
    """

    relative: ClassVar[bool] = True
    trained: ClassVar[bool] = False

    @abc.abstractmethod
    def inverse_frequencies(self, head_dim: int) -> np.ndarray:
        """float64[head_dim / 2], radians per token, fastest first; 0: the pair is not rotated."""

    @property
    def scaling(self) -> float:
        """Multiplies cos and sin of the rotated pairs: what they add to logits grows by its square.

        YaRN's attention factor. Unrotated pairs pass through, as in released models.
        """
        return 1.0

    def __call__(self, x: Array, positions: Array) -> Array:
        """Rotates x[B, T, N, H] by its positions int[B or 1, T]."""
        return rotate(x, positions, self.inverse_frequencies(x.shape[-1]), self.scaling)


def geometric(d: int, theta: float) -> np.ndarray:
    """float64[d / 2]: theta^(-2k/d) for k = 0..d/2-1."""
    return theta ** (-np.arange(pair_count(d), dtype=np.float64) * 2 / d)


def turned_pairs(d: int, p: float) -> int:
    """How many pairs the fraction p of d dimensions is; 0.58 of 100 are 29, whatever the floats."""
    return int(round(p * d / 2, 9))


def squeezed(d: int, p: float, frequencies: Callable[[int], np.ndarray]) -> np.ndarray:
    """float64[d / 2]: the frequencies of a head of p d dimensions, then zeros."""
    rotated = turned_pairs(d, p)
    head = frequencies(2 * rotated) if rotated else np.zeros(0)
    return np.concatenate([head, np.zeros(pair_count(d) - rotated)])


def check_fraction(owner: str, **values: float) -> None:
    """Refuses what is no fraction of pairs."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(
                f"{owner}: {name}={value} must lie in [0, 1], the fraction of pairs that turn"
            )


def check_theta(theta: float) -> None:
    """Refuses what is no base."""
    check("theta", theta, float)
    if theta <= 1:
        raise UserError(f"theta={theta} must be above 1 (10_000 in Gemma)")


def check_at_least(least: float, owner: str, **values: float) -> None:
    """Refuses what is no finite number from `least` on."""
    for name, value in values.items():
        check(name, value, float, owner)
        if value < least:
            raise UserError(f"{owner}: {name}={value} must be at least {least}")
