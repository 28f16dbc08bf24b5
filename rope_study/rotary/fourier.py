"""FoPE: every pair turns by a Fourier series of all frequencies instead of by one of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.errors import UserError
from rope_study.rotary.encoding import ENCODINGS, Encoding, check_at_least, check_theta
from rope_study.rotary.rotation import phases, turn
from rope_study.rotary.scaled import clipped

Array = jax.Array


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class Fope(Encoding):
    """FoPE: every pair turns by a Fourier series over all trained frequencies, led by its own.

    Not a rotation and not relative: cos and sin have different coefficients, drawn once from the
    seed and never trained. Pairs below one cycle over L are not in any series and do not turn.
    The released code differs in two ways: their sin is padded with 1, which turns them by 45
    degrees and doubles what they add to a logit, and at most d/4 pairs turn. `released` does both.

    Formula: cos_k(t) = cos(g_k t) + sum_j C_jk cos(g_j t), sin_k(t) = sin(g_k t) + sum_j S_jk
      sin(g_j t), over g_j = theta^(-2(j-1)/d) >= 2 pi / L; C, S ~ sigma Xavier normal
    Source: Hua et al., ICML 2025 (arXiv 2412.17739), and its released code

    Args:
      context: trained length L, tokens.
      theta: the base.
      sigma: gain of the coefficients; 0.3, 0.4, 0.6 for the paper's 60M, 180M, 1.2B models.
      heads: bases; 1 for all heads alike, or as many as key/value heads for one each.
      seed: of the coefficients; they are in no checkpoint, the seed in the name brings them back.
      released: whether to do as the released code does.
    """

    kind = "fope"
    relative = False
    context: float
    theta: float = 10_000.0
    sigma: float = 0.3
    heads: int = 1
    seed: int = 0
    released: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, context=self.context, heads=self.heads)
        check_at_least(0, self.kind, sigma=self.sigma, seed=self.seed)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]: those that are mixed, in their places; 0: not in the mixture."""
        return clipped(head_dim, self.context, self.theta)

    @classmethod
    def example(cls, head_dim=64):
        """With a short context."""
        return cls(context=64)

    def __call__(self, x: Array, positions: Array) -> Array:
        """Turns x[B, T, N, H] by its positions int[B or 1, T]."""
        N, H = x.shape[2:]
        if N % self.heads:
            raise UserError(
                f"{self.name}: {N} heads do not divide into {self.heads} bases;"
                " give heads=1 or as many as the model has kv_heads"
            )
        frequencies = self.inverse_frequencies(H)
        angles = phases(positions, frequencies[frequencies > 0])
        cos, sin = (
            _per_head(_mix(wave(angles), mixture), N, H, pad)
            for wave, mixture, pad in zip(
                (jnp.cos, jnp.sin), self.mixtures(H), (1.0, float(self.released)), strict=True
            )
        )
        return turn(x, cos, sin)

    def mixtures(self, head_dim: int) -> np.ndarray:
        """float64[2, heads, D, M]: weights of D frequencies in cos (0) and sin (1) of M pairs."""
        D = np.count_nonzero(self.inverse_frequencies(head_dim))
        M = min(D, head_dim // 4) if self.released else D
        dominant = np.zeros((D, M))
        step = math.ceil(D / M) if M else 1
        leading = np.arange(0, D, step)  # with fewer pairs than frequencies, every step-th leads
        dominant[leading, np.arange(len(leading))] = 1
        # Xavier's deviation as torch computes it for [D, M] and for [heads, D, M]; 1 if empty.
        fans = D + M if self.heads == 1 else M * (D + self.heads)
        # Nothing of this is in a checkpoint: RandomState draws the same numbers in every NumPy.
        noise = np.random.RandomState(self.seed).standard_normal((2, self.heads, D, M))
        return dominant + self.sigma * math.sqrt(2 / max(fans, 1)) * noise


def _mix(waves: Array, mixture: np.ndarray) -> Array:
    """f32[B, T, D] waves to f32[B, T, heads, M] series."""
    weights = jnp.asarray(mixture, jnp.float32)
    return jnp.einsum("btd,hdm->bthm", waves, weights, precision=jax.lax.Precision.HIGHEST)


def _per_head(series: Array, heads: int, head_dim: int, pad: float) -> Array:
    """f32[B, T, bases, M] to f32[B, T, N, H/2]: query head n reads basis n // (N / bases)."""
    missing = head_dim // 2 - series.shape[-1]
    series = jnp.pad(series, [(0, 0)] * 3 + [(0, missing)], constant_values=pad)
    return jnp.repeat(series, heads // series.shape[2], axis=2)


fope = Fope
