"""Encodings of the literature that are one vector of frequencies; those of the paper: basic.py.

Two lengths recur. `context` is how many tokens the model was trained on, L; `length` is how many
it is run on. Both are numbers fixed before compilation: an encoding that depends on `length` is
another encoding at another length, so keys cached at one do not fit queries of the other and have
to be rotated again.
"""

import dataclasses
import math

import numpy as np

from rope_study.errors import UserError
from rope_study.rotary.encoding import (
    ENCODINGS,
    Encoding,
    check_at_least,
    check_fraction,
    check_theta,
    geometric,
    squeezed,
)
from rope_study.rotary.rotation import pair_count

# --- slow pairs are not rotated ---------------------------------------------------------------


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class HalfTruncatedRope(Encoding):
    """Half-truncated RoPE: the first half of the pairs spans 1 to 1/theta, the rest is unrotated.

    Not p_rope(0.5): its frequencies stop at the middle of the range, these reach the end of it.

    Formula: g_k = theta^(-(k-1)/(d/4-1)) for the first d/4 pairs, 0 after
    Source: modded-nanogpt; what scale-invariant attention (arXiv 2505.17083) calls p-RoPE

    Args:
      theta: the slowest pair that turns, turns once in 2 pi theta tokens.
    """

    kind = "half_truncated_rope"
    theta: float = 1024.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        rotated = head_dim // 4
        spread = self.theta ** -np.linspace(0, 1, rotated)
        return np.concatenate([spread, np.zeros(pair_count(head_dim) - rotated)])


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class Hope(Encoding):
    """HoPE: only pairs that complete a cycle within the trained context turn.

    Up to rounding p_rope with p = ln(L/2 pi)/ln(theta). Also what FoPE does before its Fourier
    series. Two other papers are called HoPE too.

    Formula: g_k = theta^(-2(k-1)/d) where that is >= 2 pi / L, else 0
    Source: Chen et al., ACL 2025 (arXiv 2410.21216)

    Args:
      context: trained length L, tokens.
      theta: the base.
    """

    kind = "hope"
    context: float
    theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, context=self.context)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return clipped(head_dim, self.context, self.theta)

    @classmethod
    def example(cls, head_dim=64):
        """With a short context."""
        return cls(context=64)


def clipped(d: int, context: float, theta: float) -> np.ndarray:
    """float64[d / 2]: geometric frequencies, 0 where they take more than `context` for a cycle."""
    frequencies = geometric(d, theta)
    return np.where(frequencies >= 2 * np.pi / context, frequencies, 0.0)


# --- longer contexts --------------------------------------------------------------------------


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class LinearRope(Encoding):
    """Position interpolation: every frequency is divided by one factor.

    Formula: g_k = theta^(-2(k-1)/d) / factor, the same as positions divided by factor
    Source: Chen et al. 2023 (arXiv 2306.15595); Gemma 3 from 4B on, global layers: factor 8

    Args:
      factor: how many times longer than trained the context is to be, at least 1.
      theta: the base.
      partial: the fraction of dimensions that the vector covers; the rest does not turn.
    """

    kind = "linear_rope"
    factor: float
    theta: float = 10_000.0
    partial: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, factor=self.factor)
        check_fraction(self.kind, partial=self.partial)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        divided = lambda width: geometric(width, self.theta) / self.factor  # noqa: E731
        return squeezed(head_dim, self.partial, divided)

    @classmethod
    def example(cls, head_dim=64):
        """Twice the context."""
        return cls(factor=2)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class NtkRope(Encoding):
    """NTK-aware scaling: a larger base; the fastest pair stays, the slowest slows by the factor.

    Formula: g_k = b^(-2(k-1)/d), b = theta factor^(d/(d-2))
    Source: bloc97 2023; Peng et al. 2023 (YaRN, arXiv 2309.00071)

    Args:
      factor: how many times longer than trained the context is to be, at least 1.
      theta: the base before scaling.
    """

    kind = "ntk_rope"
    factor: float
    theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, factor=self.factor)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return _ntk(head_dim, self.theta, self.factor)

    @classmethod
    def example(cls, head_dim=64):
        """Twice the context."""
        return cls(factor=2)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class DynamicNtkRope(Encoding):
    """Dynamic NTK: NTK-aware scaling by as much as the length at hand needs.

    Plain RoPE up to the trained context. Beyond, every length has frequencies of its own: keys
    cached at a shorter length have to be rotated again.

    Formula: g_k = b^(-2(k-1)/d), b = theta (factor max(length, L)/L - factor + 1)^(d/(d-2))
    Source: emozilla 2023; YaRN (arXiv 2309.00071); Transformers' rope_type "dynamic"

    Args:
      factor: how fast the base grows with length, at least 1.
      context: trained length L, tokens.
      length: the length that is run, tokens; fixed when the program is compiled.
      theta: the base before scaling.
      partial: the fraction of dimensions that the vector covers; the rest does not turn.
    """

    kind = "dynamic_ntk_rope"
    factor: float
    context: float
    length: float
    theta: float = 10_000.0
    partial: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, factor=self.factor, context=self.context, length=self.length)
        check_fraction(self.kind, partial=self.partial)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        longer = max(self.length, self.context) / self.context
        scale = self.factor * longer - (self.factor - 1)
        return squeezed(head_dim, self.partial, lambda width: _ntk(width, self.theta, scale))

    @classmethod
    def example(cls, head_dim=64):
        """Twice a short context."""
        return cls(factor=2, context=8, length=16)


def _ntk(d: int, theta: float, scale: float) -> np.ndarray:
    """float64[d / 2]; a head of one pair has frequency 1 whatever the base."""
    return geometric(d, theta * scale ** (d / (d - 2)) if d > 2 else theta)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class YarnRope(Encoding):
    """YaRN: fast pairs stay, slow ones are divided by the factor, a ramp between; hotter logits.

    The ramp runs over the pairs between those of beta_fast and beta_slow cycles over L. Logits
    grow by a^2. With beta_slow = 1 the ramp ends at p* = ln(L/2 pi)/ln(theta) of the pairs.

    Formula: g_k = g (1 - ramp_k) + (g / factor) ramp_k with g = theta^(-2(k-1)/d);
      cos and sin times a = 0.1 ln factor + 1
    Source: Peng et al. 2023 (arXiv 2309.00071);
      Transformers' rope_type "yarn"

    Args:
      factor: how many times longer than trained the context is to be, at least 1.
      context: trained length L, tokens.
      theta: the base.
      beta_fast: pairs of more cycles over L than this stay as they are.
      beta_slow: pairs of fewer cycles over L than this are divided by factor.
      truncate: whether the ramp begins and ends at whole pairs (gpt-oss: False).
      mscale: with mscale_all_dim, a = (0.1 mscale ln factor + 1) / (0.1 mscale_all_dim ln factor
        + 1), as in DeepSeek.
      mscale_all_dim: see mscale.
      attention_factor: a itself, whatever the formulas say.
      partial: the fraction of dimensions that the vector covers; the rest does not turn.
    """

    kind = "yarn_rope"
    factor: float
    context: float
    theta: float = 10_000.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    partial: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, factor=self.factor, context=self.context)
        check_fraction(self.kind, partial=self.partial)
        if not self.beta_fast > self.beta_slow > 0:
            raise UserError(
                f"{self.kind}: beta_fast={self.beta_fast} must be above beta_slow="
                f"{self.beta_slow} > 0"
            )

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return squeezed(head_dim, self.partial, self._ramped)

    @property
    def scaling(self):
        """The attention factor a."""
        if self.attention_factor is not None:
            return self.attention_factor
        temperature = lambda scale: 0.1 * scale * math.log(self.factor) + 1  # noqa: E731
        if self.mscale and self.mscale_all_dim:
            return temperature(self.mscale) / temperature(self.mscale_all_dim)
        return temperature(1.0)

    @classmethod
    def example(cls, head_dim=64):
        """Four times a short context."""
        return cls(factor=4, context=64)

    def _ramped(self, d: int) -> np.ndarray:
        slow = self._ramp(d)
        return geometric(d, self.theta) * (1 - slow + slow / self.factor)

    def _ramp(self, d: int) -> np.ndarray:
        """float64[d / 2]: 0 for fast pairs, 1 for slow ones, linear in the index of the pair."""
        # A pair completes beta cycles over the context at index d ln(L / (2 pi beta)) / 2 ln theta.
        first, last = (
            d * math.log(self.context / (2 * math.pi * beta)) / (2 * math.log(self.theta))
            for beta in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # The released code bounds the end by d - 1 though there are d / 2 pairs.
        first, last = max(first, 0), min(last, d - 1)
        width = last - first if last != first else 0.001
        return np.clip((np.arange(d // 2) - first) / width, 0, 1)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class LongRope(Encoding):
    """LongRoPE: every pair is divided by a searched factor of its own; sharper attention.

    Which list holds depends on the length that is run. Passing the trained context changes all
    frequencies, those of early positions too: keys cached before have to be rotated again.

    Formula: g_k = theta^(-2(k-1)/d) / e_k, e the short list if length <= L, else the long one;
      cos and sin times a = sqrt(1 + ln factor / ln L)
    Source: Ding et al. 2024 (arXiv 2402.13753); Phi-3;
      Transformers' rope_type "longrope"

    Args:
      short_factor: one number a pair, used up to the trained context.
      long_factor: one number a pair, used beyond.
      context: trained length L, tokens (Phi-3: 4096).
      length: the length that is run, tokens; fixed when the program is compiled.
      factor: longest context over trained context; sets the attention factor only.
      theta: the base.
      attention_factor: a itself, whatever the formula says.
      partial: the fraction of dimensions that the vector covers (Phi-4-mini: 0.75).
    """

    kind = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    context: float
    length: float
    factor: float
    theta: float = 10_000.0
    attention_factor: float | None = None
    partial: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, factor=self.factor, length=self.length)
        check_at_least(2, self.kind, context=self.context)  # ln 1 = 0 divides
        check_fraction(self.kind, partial=self.partial)
        for key in ("short_factor", "long_factor"):
            if not all(value > 0 for value in getattr(self, key)):
                raise UserError(f"{self.kind}: every number of {key} must be above 0")

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return squeezed(head_dim, self.partial, self._divided)

    @property
    def scaling(self):
        """The attention factor a."""
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.context))

    @classmethod
    def example(cls, head_dim=64):
        """Beyond a short context, slow pairs divided by up to 4."""
        pairs = head_dim // 2
        rising = tuple(1 + 3 * k // pairs for k in range(pairs))
        return cls((1,) * pairs, rising, context=8, length=16, factor=2)

    def _divided(self, d: int) -> np.ndarray:
        factors = self.short_factor if self.length <= self.context else self.long_factor
        if len(factors) != d // 2:
            raise UserError(
                f"{self.kind}: {len(factors)} factors for {d // 2} pairs; short_factor and"
                " long_factor have one number for every pair that turns"
            )
        return geometric(d, self.theta) / np.asarray(factors, np.float64)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class Llama3Rope(Encoding):
    """Llama 3 scaling: fast pairs stay, slow ones are divided by the factor, smooth in between.

    As YaRN, but the way from one to the other is linear in cycles over L, not in the index.

    Formula: g_k = (1 - s) g / factor + s g with g = theta^(-2(k-1)/d),
      s = clip((g L / 2 pi - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    Source: Llama 3.1 (arXiv 2407.21783) as released; factor 32 in Llama 3.2 1B and 3B

    Args:
      factor: how many times longer than trained the context is to be, at least 1.
      context: trained length L, tokens.
      theta: the base.
      low_freq_factor: pairs of fewer cycles over L than this are divided by factor.
      high_freq_factor: pairs of more cycles over L than this stay as they are.
      partial: the fraction of dimensions that the vector covers; the rest does not turn.
    """

    kind = "llama3_rope"
    factor: float = 8.0
    context: float = 8192
    theta: float = 500_000.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    partial: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)
        check_at_least(1, self.kind, factor=self.factor, context=self.context)
        check_fraction(self.kind, partial=self.partial)
        if not self.high_freq_factor > self.low_freq_factor:
            raise UserError(
                f"{self.kind}: high_freq_factor={self.high_freq_factor} must be above"
                f" low_freq_factor={self.low_freq_factor}"
            )

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return squeezed(head_dim, self.partial, self._smoothed)

    def _smoothed(self, d: int) -> np.ndarray:
        plain, low, high = geometric(d, self.theta), self.low_freq_factor, self.high_freq_factor
        cycles = plain * self.context / (2 * np.pi)
        smooth = np.clip((cycles - low) / (high - low), 0, 1)
        return plain * ((1 - smooth) / self.factor + smooth)


half_truncated_rope, hope, linear_rope, ntk_rope = HalfTruncatedRope, Hope, LinearRope, NtkRope
dynamic_ntk_rope, yarn_rope, longrope, llama3_rope = DynamicNtkRope, YarnRope, LongRope, Llama3Rope
