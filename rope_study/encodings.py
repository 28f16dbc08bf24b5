"""Encodings by name: what a config or the command line may write, parsed strictly, never eval'd.

A spelling is a name, `rope`, or a call with literal arguments, `p_rope(p=0.5, theta=500_000)`;
`module:function` names a function of the user's own, `(x, positions) -> x`.
`python -m rope_study.encodings` lists them all.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable

import numpy as np

from rope_study import fope, frequencies, learned, rotary
from rope_study.errors import UserError
from rope_study.frequencies import check_at_least
from rope_study.spelling import call

# A new encoding is one function and one line here: see docs/encodings.md.
ENCODINGS: dict[str, Callable[..., rotary.Encoding]] = {
    function.__name__: function
    for function in (
        rotary.rope,
        rotary.nope,
        rotary.p_rope,
        rotary.reversed_p_rope,
        rotary.partial_rope,
        frequencies.half_truncated_rope,
        frequencies.hope,
        frequencies.proportional_rope,
        frequencies.linear_rope,
        frequencies.ntk_rope,
        frequencies.dynamic_ntk_rope,
        frequencies.yarn_rope,
        frequencies.longrope,
        frequencies.llama3_rope,
        learned.learned_rope,
        fope.fope,
        frequencies.fope_clip,
    )
}

WHERE = "set config.model.rotary or config.encodings"


def parse(spelling: str | rotary.Rotary) -> rotary.Rotary:
    """The encoding that a spelling names; a function or an Encoding comes back as it is.

    Raises:
      UserError: unknown name (the nearest is suggested), unknown or wrong parameter, not a call
        with literal arguments, or a module:function that cannot be imported.
    """
    if callable(spelling):
        return spelling
    if ":" in spelling:
        return _import_function(spelling)
    return call(spelling, ENCODINGS, "encoding", WHERE)


def name_of(encoding: rotary.Rotary) -> str:
    """The name for tables and folders: an Encoding's own, or module:function."""
    if isinstance(encoding, rotary.Encoding):
        return encoding.name
    module = getattr(encoding, "__module__", type(encoding).__module__)
    return f"{module}:{getattr(encoding, '__qualname__', type(encoding).__qualname__)}"


def _import_function(spelling: str) -> rotary.Rotary:
    module, _, attribute = spelling.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"rotary function {spelling!r} cannot be imported ({error}): write module:function,"
            f" with the module on PYTHONPATH; {WHERE}"
        ) from error
    if not callable(function):
        raise UserError(f"{spelling!r} is not a function (x, positions) -> x; {WHERE}")
    return function


# --- how far pairs turn -----------------------------------------------------------------------


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
      attention_factor: on cos and sin.
    """

    name: str
    head_dim: int
    context: int
    inverse_frequencies: np.ndarray
    cycles: np.ndarray
    fraction: float
    p_star: float
    attention_factor: float

    def __str__(self):
        turning = np.count_nonzero(self.inverse_frequencies)
        lines = [
            f"{self.name}: head_dim {self.head_dim}, context {self.context:,} tokens",
            f"{turning} of {len(self.cycles)} pairs turn, {np.sum(self.cycles >= 1)} complete a"
            f" cycle: fraction {self.fraction:.3f}; p* = ln(L/2 pi)/ln(theta) = {self.p_star:.3f}",
            f"attention factor {self.attention_factor:.6g}",
            "pair  rad/token  tokens/cycle  cycles c_k",
        ]
        for k, (g, c) in enumerate(zip(self.inverse_frequencies, self.cycles, strict=True)):
            row = f"{g:10.4g}  {2 * math.pi / g:12.4g}  {c:10.4g}" if g else "not rotated"
            lines.append(f"{k:4d} {row}")
        return "\n".join(lines)


def describe(encoding: str | rotary.Encoding, head_dim: int, context: int) -> Description:
    """Cycles over the context, c_k = g_k L / 2 pi, of every pair; print it for a table.

    Learned frequencies are described as they start. The plot is figures.encoding_cycles.

    Args:
      encoding: an Encoding or its spelling.
      head_dim: dimensions of a head.
      context: L, tokens.

    Raises:
      UserError: a function of the user's own, whose frequencies are not known.
    """
    encoding = parse(encoding)
    if not isinstance(encoding, rotary.Encoding):
        raise UserError(f"the frequencies of {name_of(encoding)} are not known")
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
        p_star=p_star(context, encoding.theta) if encoding.theta else math.nan,
        attention_factor=encoding.attention_factor,
    )


def p_star(context: float, theta: float) -> float:
    """p* = ln(L / 2 pi) / ln(theta): where RoPE's frequencies pass one cycle over L."""
    return math.log(context / (2 * math.pi)) / math.log(theta)


if __name__ == "__main__":
    # Imported late: the listing also covers what is built from encodings.
    from rope_study.listing import listing

    print(listing())
