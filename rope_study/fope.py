"""FoPE: every pair turns by a Fourier series of all frequencies instead of by one of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.errors import UserError
from rope_study.frequencies import check_at_least, clipped
from rope_study.rotary import Encoding, check_theta, phases, spelled, turn
from rope_study.spelling import spell

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class FourierEncoding(Encoding):
    """cos and sin of every pair are fixed random mixtures over frequencies; see `fope`.

    `inverse_frequencies` are those that are mixed, in their places; a 0 is not in the mixture.
    """

    sigma: float = 0.3
    heads: int = 1
    seed: int = 0
    released: bool = False
    relative: bool = dataclasses.field(default=False, compare=False, repr=False)

    def __call__(self, x: Array, positions: Array) -> Array:
        """Turns x[B, T, N, H] by its positions int[B or 1, T]."""
        N, H = x.shape[2:]
        if N % self.heads:
            raise UserError(
                f"{self.name}: {N} heads do not divide into {self.heads} bases;"
                " give heads=1 or as many as config.model.kv_heads"
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
        own = np.arange(0, D, step)  # with fewer pairs than frequencies, every step-th leads one
        dominant[own, np.arange(len(own))] = 1
        # Xavier's deviation as torch computes it for [D, M] and for [heads, D, M]; 1 if empty.
        fans = D + M if self.heads == 1 else M * (D + self.heads)
        # Nothing of this is in a checkpoint: RandomState draws the same numbers in every NumPy.
        noise = np.random.RandomState(self.seed).standard_normal((2, self.heads, D, M))
        return dominant + self.sigma * math.sqrt(2 / max(fans, 1)) * noise


def _mix(waves: Array, mixture: np.ndarray) -> Array:
    """f32[B, T, D] waves to f32[B, T, heads, M] series."""
    mixture = jnp.asarray(mixture, jnp.float32)
    return jnp.einsum("btd,hdm->bthm", waves, mixture, precision=jax.lax.Precision.HIGHEST)


def _per_head(series: Array, heads: int, head_dim: int, pad: float) -> Array:
    """f32[B, T, bases, M] to f32[B, T, N, H/2]: query head n reads basis n // (N / bases)."""
    missing = head_dim // 2 - series.shape[-1]
    series = jnp.pad(series, [(0, 0)] * 3 + [(0, missing)], constant_values=pad)
    return jnp.repeat(series, heads // series.shape[2], axis=2)


@spelled
def fope(
    context: float,
    theta: float = 10_000.0,
    sigma: float = 0.3,
    heads: int = 1,
    seed: int = 0,
    released: bool = False,
) -> FourierEncoding:
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
    check_theta(theta)
    check_at_least(1, "fope", context=context)
    check_at_least(0, "fope", sigma=sigma, seed=seed)
    check_at_least(1, "fope", heads=heads)
    for parameter, value in {"heads": heads, "seed": seed}.items():
        if value != int(value):
            raise UserError(f"fope: {parameter}={value} must be a whole number")
    if not isinstance(released, bool):
        raise UserError(f"fope: released={released!r} must be True or False")
    name = spell(
        "fope", context=context, theta=theta, sigma=sigma, heads=heads, seed=seed, released=released
    )
    return FourierEncoding(
        name,
        lambda d: clipped(d, context, theta),
        theta=theta,
        sigma=sigma,
        heads=int(heads),
        seed=int(seed),
        released=released,
    )
