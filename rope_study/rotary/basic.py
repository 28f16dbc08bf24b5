"""The encodings of the paper: RoPE, NoPE, p-RoPE, its reverse, and partial rotary."""

import dataclasses

import numpy as np

from rope_study.rotary.encoding import (
    ENCODINGS,
    Encoding,
    check_at_least,
    check_fraction,
    check_theta,
    geometric,
    squeezed,
    turned_pairs,
)
from rope_study.rotary.rotation import pair_count


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class Rope(Encoding):
    """RoPE: every pair turns.

    Formula: g_k = theta^(-2(k-1)/d)
    Source: Su et al. 2021 (arXiv 2104.09864); theta = 10,000 in Gemma

    Args:
      theta: the base; the slowest pair turns once in about 2 pi theta tokens.
    """

    kind = "rope"
    theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_theta(self.theta)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return geometric(head_dim, self.theta)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class Nope(Encoding):
    """NoPE: no pair turns; order is known from the causal mask alone.

    Formula: g_k = 0
    Source: Kazemnejad et al. 2023 (arXiv 2305.19466)
    """

    kind = "nope"

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return np.zeros(pair_count(head_dim))


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class PRope(Encoding):
    """p-RoPE: the fraction p of highest frequencies turns.

    The exponent keeps the full head_dim, so what turns, turns as in RoPE: p=0 is NoPE, p=1 RoPE.
    Transformers' rope_type "proportional"; Gemma 4's global layers have p_rope(0.25, 1e6).

    Formula: g_k = theta^(-2(k-1)/d) / factor for the first int(p d / 2) pairs, 0 after
    Source: Barbero et al. 2025 (arXiv 2410.06205), section 6.1; factor: Gemma 4

    Args:
      p: the fraction of pairs that turn, 0 to 1.
      theta: the base.
      factor: divides all frequencies, for a context so many times longer than trained.
    """

    kind = "p_rope"
    p: float = 0.75
    theta: float = 10_000.0
    factor: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_fraction(self.kind, p=self.p)
        check_theta(self.theta)
        if self.factor is not None:
            check_at_least(1, self.kind, factor=self.factor)
        if self.factor == 1:  # the same encoding has one name
            object.__setattr__(self, "factor", None)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        rotated = np.arange(pair_count(head_dim)) < turned_pairs(head_dim, self.p)
        return np.where(rotated, geometric(head_dim, self.theta) / (self.factor or 1.0), 0.0)


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class ReversedPRope(Encoding):
    """p-RoPE reversed: the fraction p of LOWEST frequencies turns.

    Formula: g_k = theta^(-2(k-1)/d) for the last int(p d / 2) pairs, 0 before
    Source: Barbero et al. 2025 (arXiv 2410.06205), Table 2

    Args:
      p: the fraction of pairs that turn, 0 to 1.
      theta: the base.
    """

    kind = "reversed_p_rope"
    p: float = 0.75
    theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_fraction(self.kind, p=self.p)
        check_theta(self.theta)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        unrotated = pair_count(head_dim) - turned_pairs(head_dim, self.p)
        pairs = np.arange(pair_count(head_dim))
        return np.where(pairs < unrotated, 0.0, geometric(head_dim, self.theta))


@ENCODINGS.add
@dataclasses.dataclass(frozen=True)
class PartialRope(Encoding):
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

    kind = "partial_rope"
    p: float = 0.75
    theta: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        check_fraction(self.kind, p=self.p)
        check_theta(self.theta)

    def inverse_frequencies(self, head_dim):
        """float64[head_dim / 2]."""
        return squeezed(head_dim, self.p, lambda width: geometric(width, self.theta))


# As the paper writes them: p_rope(0.75).
rope, nope, p_rope = Rope, Nope, PRope
reversed_p_rope, partial_rope = ReversedPRope, PartialRope
