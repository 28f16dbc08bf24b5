"""How far the pairs of an encoding turn over a context."""

import dataclasses
import math

import numpy as np

from rope_study.checks import checked
from rope_study.errors import UserError
from rope_study.rotary.encoding import Encoding, Rotary, check_at_least, check_theta
from rope_study.rotary.registry import name_of, parse


@dataclasses.dataclass(frozen=True)
class Description:
    """How far every pair of an encoding turns over a context of L tokens.

    Attributes:
      name: of the encoding.
      head_dim, context: of the model; context in tokens.
      inverse_frequencies: float64[head_dim / 2], g_k in radians per token; 0 = not rotated.
      cycles: float64[head_dim / 2], c_k = g_k L / 2 pi.
      fraction: the fraction of pairs with c_k >= 1, counted.
      p_star: ln(L/2 pi) / ln(theta), that fraction for RoPE of the same theta and many pairs; above
        1 where all pairs complete a cycle, NaN where there is no theta.
      scaling: the attention factor, on cos and sin.
    """

    name: str
    head_dim: int
    context: int
    inverse_frequencies: np.ndarray
    cycles: np.ndarray
    fraction: float
    p_star: float
    scaling: float

    def __str__(self):
        turning = np.count_nonzero(self.inverse_frequencies)
        lines = [
            f"{self.name}: head_dim {self.head_dim}, context {self.context:,} tokens",
            f"{turning} of {len(self.cycles)} pairs turn, {np.sum(self.cycles >= 1)} complete a"
            f" cycle: fraction {self.fraction:.3f}; p* = ln(L/2 pi)/ln(theta) = {self.p_star:.3f}",
            f"attention factor {self.scaling:.6g}",
            "pair  rad/token  tokens/cycle  cycles c_k",
        ]
        for k, (g, c) in enumerate(zip(self.inverse_frequencies, self.cycles, strict=True)):
            row = f"{g:10.4g}  {2 * math.pi / g:12.4g}  {c:10.4g}" if g else "not rotated"
            lines.append(f"{k:4d} {row}")
        return "\n".join(lines)


@checked
def describe(encoding: str | Rotary, head_dim: int, context: int) -> Description:
    """Cycles over the context, c_k = g_k L / 2 pi, of every pair; print it for a table.

    Learned frequencies are described as they start. The plot is figures.encoding_cycles.

    Args:
      encoding: an Encoding or its name.
      head_dim: dimensions of a head.
      context: L, tokens.

    Raises:
      UserError: a function of the user's own, whose frequencies are not known.
    """
    encoding = parse(encoding)
    if not isinstance(encoding, Encoding):
        raise UserError(f"the frequencies of {name_of(encoding)} are not known")
    theta = getattr(encoding, "theta", None)
    check_at_least(1, "describe", context=context)
    inverse = encoding.inverse_frequencies(head_dim)
    cycles = inverse * context / (2 * np.pi)
    return Description(
        name=encoding.name,
        head_dim=head_dim,
        context=context,
        inverse_frequencies=inverse,
        cycles=cycles,
        fraction=float(np.mean(cycles >= 1)),
        p_star=p_star(context, theta) if theta else math.nan,
        scaling=encoding.scaling,
    )


@checked
def p_star(context: float, theta: float) -> float:
    """p* = ln(L / 2 pi) / ln(theta): where RoPE's frequencies pass one cycle over L."""
    check_theta(theta)
    if context <= 0:
        raise UserError(f"context={context} must be above 0", "context")
    return math.log(context / (2 * math.pi)) / math.log(theta)
