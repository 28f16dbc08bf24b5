"""Learned frequencies: one trained scalar a pair, shared by all layers and heads."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.rotary.encoding import ENCODINGS, Encoding, check_theta, geometric
from rope_study.rotary.rotation import phases, turn
from rope_study.sharding.parameter import Parameter

Array = jax.Array

LOG_SCALE = "rotary_log_scale"
CHUNK = 1024  # positions are split at multiples of this power of two


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class LearnedRope(Encoding):
    """Learned RoPE: the log of every frequency is trained, shared by all layers and heads.

    Starts as RoPE. STRING's change of basis cancels against the q and k projections of a 1-D
    decoder; the frequencies are what it leaves to learn.

    Formula: g_k = theta^(-2(k-1)/d) exp(s_k), s trained from 0
    Source: the 1-D case of STRING (Schenck et al. 2025, arXiv 2502.02562)

    Args:
      theta: the base of the frequencies at the start.
    """

    kind = "learned_rope"
    trained = True
    theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2], before training."""
        return geometric(head_dim, self.theta)

    def shared_parameters(self, config):
        """rotary_log_scale [head_dim / 2], s."""
        return {LOG_SCALE: Parameter((config.head_dim // 2,), (None,), decay=False)}

    def __call__(
        self, x: Array, positions: Array, weights: Mapping[str, Array] | None = None
    ) -> Array:
        """Turns x[B, T, N, H] by its positions int[B or 1, T]; as at the start where no weights."""
        start = self.inverse_frequencies(x.shape[-1])
        angles = phases(positions, start)
        if weights is not None:
            # What training adds to a frequency; at s = 0 the encoding is RoPE bit for bit.
            added = jnp.asarray(start, jnp.float32) * jnp.expm1(weights[LOG_SCALE])
            angles = angles + traced_phases(positions, added)
        angles = angles[..., None, :]
        return turn(x, jnp.cos(angles), jnp.sin(angles))

    def learned_frequencies(self, weights: Mapping[str, Array]) -> np.ndarray:
        """float64[H/2]: radians per token after training, in the order of the pairs."""
        scale = np.asarray(weights[LOG_SCALE], np.float64)
        return self.inverse_frequencies(2 * len(scale)) * np.exp(scale)

    def pinned(self, weights: Mapping[str, Array]) -> "PinnedRope":
        """The encoding that training arrived at, with frequencies that no longer change."""
        return PinnedRope(tuple(self.learned_frequencies(weights).tolist()))


@dataclasses.dataclass(frozen=True)
class PinnedRope(Encoding):
    """RoPE with frequencies given one by one, radians per token."""

    kind = "pinned_rope"
    frequencies: tuple[float, ...]

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return np.asarray(self.frequencies, np.float64)


def traced_phases(positions: Array, frequencies: Array) -> Array:
    """Angles f32[..., T, H/2] up to whole turns, with gradients, for traced f32[H/2] frequencies.

    `rotation.phases` needs frequencies that are known before compilation. Here the position is
    split in two, both below 1024 up to 2^20, and whole turns are dropped from 1024 g before the
    large half multiplies its rounding.
    """
    high, low = jnp.divmod(positions[..., None].astype(jnp.int32), CHUNK)
    step = CHUNK * frequencies  # exact
    turns = jax.lax.stop_gradient(jnp.round(step / (2 * np.pi)))
    # 2 pi in two parts, so that the product with the first has no rounding (Cody and Waite).
    first = 6.28125
    step = (step - turns * first) - turns * (2 * np.pi - first)
    return high.astype(jnp.float32) * step + low.astype(jnp.float32) * frequencies


learned_rope = LearnedRope
