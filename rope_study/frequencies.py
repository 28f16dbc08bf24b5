"""Encodings of the literature that are one vector of frequencies; those of the paper: rotary.py.

Two lengths recur. `context` is how many tokens the model was trained on, L; `length` is how many
it is run on. Both are numbers fixed before compilation: an encoding that depends on `length` is
another encoding at another length, so keys cached at one do not fit queries of the other and have
to be rotated again.
"""

import math

import numpy as np

from rope_study.errors import UserError
from rope_study.rotary import (
    Encoding,
    check_fraction,
    check_theta,
    geometric,
    pair_count,
    spelled,
    squeezed,
)
from rope_study.spelling import check_numbers, spell

# --- slow pairs stand still -------------------------------------------------------------------


@spelled
def half_truncated_rope(theta: float = 1024.0) -> Encoding:
    """Half-truncated RoPE: the first half of the pairs spans 1 to 1/theta, the rest stands still.

    Not p_rope(0.5): its frequencies stop at the middle of the range, these reach the end of it.

    Formula: g_k = theta^(-(k-1)/(d/4-1)) for the first d/4 pairs, 0 after
    Source: modded-nanogpt; what scale-invariant attention (arXiv 2505.17083) calls p-RoPE

    Args:
      theta: the slowest pair that turns, turns once in 2 pi theta tokens.
    """
    check_theta(theta)

    def frequencies(d: int) -> np.ndarray:
        turning = d // 4
        spread = theta ** -np.linspace(0, 1, turning)
        return np.concatenate([spread, np.zeros(pair_count(d) - turning)])

    return Encoding(spell("half_truncated_rope", theta=theta), frequencies, theta=theta)


@spelled
def hope(context: float, theta: float = 10_000.0) -> Encoding:
    """HoPE: only pairs that complete a cycle within the trained context turn.

    Up to rounding p_rope with p = ln(L/2 pi)/ln(theta). Two other papers are called HoPE too.

    Formula: g_k = theta^(-2(k-1)/d) where that is >= 2 pi / L, else 0
    Source: Chen et al., ACL 2025 (arXiv 2410.21216)

    Args:
      context: trained length L, tokens.
      theta: the base.
    """
    return _clipped("hope", context, theta)


@spelled
def fope_clip(context: float, theta: float = 10_000.0) -> Encoding:
    """FoPE without its Fourier series: frequencies below one cycle are set to zero; equals hope.

    Formula: g_k = theta^(-2(k-1)/d) where that is >= 2 pi / L, else 0
    Source: Hua et al., ICML 2025 (arXiv 2412.17739): the zeroing of undertrained frequencies alone

    Args:
      context: trained length L, tokens.
      theta: the base.
    """
    return _clipped("fope_clip", context, theta)


def clipped(d: int, context: float, theta: float) -> np.ndarray:
    """float64[d / 2]: geometric frequencies, 0 where they take more than `context` for a cycle."""
    frequencies = geometric(d, theta)
    return np.where(frequencies >= 2 * np.pi / context, frequencies, 0.0)


def _clipped(name: str, context: float, theta: float) -> Encoding:
    check_theta(theta)
    check_at_least(1, name, context=context)
    spelling = spell(name, context=context, theta=theta)
    return Encoding(spelling, lambda d: clipped(d, context, theta), theta=theta)


@spelled
def proportional_rope(p: float = 0.25, factor: float = 1.0, theta: float = 1e6) -> Encoding:
    """Proportional RoPE: p-RoPE as Gemma 4 spells it, all frequencies divided by a factor.

    Formula: g_k = theta^(-2(k-1)/d) / factor for the first int(p d / 2) pairs, 0 after
    Source: Gemma 4, global layers (head_dim 512); Transformers' rope_type "proportional"

    Args:
      p: the fraction of pairs that turn, 0 to 1.
      factor: how many times longer than trained the context is to be, at least 1.
      theta: the base.
    """
    check_fraction(p, "proportional_rope")
    check_theta(theta)
    check_at_least(1, "proportional_rope", factor=factor)

    def frequencies(d: int) -> np.ndarray:
        turning = np.arange(pair_count(d)) < int(p * d // 2)
        return np.where(turning, geometric(d, theta) / factor, 0.0)

    name = spell("proportional_rope", p=p, factor=factor, theta=theta)
    return Encoding(name, frequencies, theta=theta)


# --- longer contexts --------------------------------------------------------------------------


@spelled
def linear_rope(factor: float, theta: float = 10_000.0, partial: float = 1.0) -> Encoding:
    """Position interpolation: every frequency is divided by one factor.

    Formula: g_k = theta^(-2(k-1)/d) / factor, the same as positions divided by factor
    Source: Chen et al. 2023 (arXiv 2306.15595); Gemma 3 from 4B on, global layers: factor 8

    Args:
      factor: how many times longer than trained the context is to be, at least 1.
      theta: the base.
      partial: the fraction of dimensions that the vector covers; the rest does not turn.
    """
    check_theta(theta)
    check_at_least(1, "linear_rope", factor=factor)
    check_fraction(partial, "linear_rope", "partial")
    name = spell("linear_rope", factor=factor, theta=theta, partial=partial)
    return Encoding(
        name, lambda d: squeezed(d, partial, lambda r: geometric(r, theta) / factor), theta=theta
    )


@spelled
def ntk_rope(factor: float, theta: float = 10_000.0) -> Encoding:
    """NTK-aware scaling: a larger base; the fastest pair stays, the slowest slows by the factor.

    Formula: g_k = b^(-2(k-1)/d), b = theta factor^(d/(d-2))
    Source: bloc97 2023; Peng et al. 2023 (YaRN, arXiv 2309.00071)

    Args:
      factor: how many times longer than trained the context is to be, at least 1.
      theta: the base before scaling.
    """
    check_theta(theta)
    check_at_least(1, "ntk_rope", factor=factor)
    name = spell("ntk_rope", factor=factor, theta=theta)
    return Encoding(name, lambda d: _ntk(d, theta, factor), theta=theta)


@spelled
def dynamic_ntk_rope(
    factor: float, context: float, length: float, theta: float = 10_000.0, partial: float = 1.0
) -> Encoding:
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
    name = "dynamic_ntk_rope"
    check_theta(theta)
    check_at_least(1, name, factor=factor, context=context, length=length)
    check_fraction(partial, name, "partial")
    scale = factor * max(length, context) / context - (factor - 1)
    spelling = spell(
        name, factor=factor, context=context, length=length, theta=theta, partial=partial
    )
    return Encoding(
        spelling, lambda d: squeezed(d, partial, lambda r: _ntk(r, theta, scale)), theta=theta
    )


def _ntk(d: int, theta: float, scale: float) -> np.ndarray:
    """float64[d / 2]; a head of one pair has frequency 1 whatever the base."""
    return geometric(d, theta * scale ** (d / (d - 2)) if d > 2 else theta)


@spelled
def yarn_rope(
    factor: float,
    context: float,
    theta: float = 10_000.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    attention_factor: float | None = None,
    partial: float = 1.0,
) -> Encoding:
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
    name = "yarn_rope"
    check_theta(theta)
    check_at_least(1, name, factor=factor, context=context)
    check_numbers(name, beta_fast=beta_fast, beta_slow=beta_slow)
    check_fraction(partial, name, "partial")
    if not beta_fast > beta_slow > 0:
        raise UserError(f"{name}: beta_fast={beta_fast} must be above beta_slow={beta_slow} > 0")
    if not isinstance(truncate, bool):
        raise UserError(f"{name}: truncate={truncate!r} must be True or False")

    def ramped(d: int) -> np.ndarray:
        slow = _ramp(d, context, theta, beta_fast, beta_slow, truncate)
        return geometric(d, theta) * (1 - slow + slow / factor)

    optional = {"mscale": mscale, "mscale_all_dim": mscale_all_dim}
    optional |= {"attention_factor": attention_factor}
    check_numbers(name, **{key: value for key, value in optional.items() if value is not None})
    spelling = spell(
        name, factor=factor, context=context, theta=theta, beta_fast=beta_fast,
        beta_slow=beta_slow, truncate=truncate, **optional, partial=partial,
    )  # fmt: skip
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(factor, mscale, mscale_all_dim)
    return Encoding(spelling, lambda d: squeezed(d, partial, ramped), attention_factor, theta)


def _ramp(
    d: int, context: float, theta: float, beta_fast: float, beta_slow: float, truncate: bool
) -> np.ndarray:
    """float64[d / 2]: 0 for fast pairs, 1 for slow ones, linear in the index of the pair."""
    # A pair completes beta cycles over the context at index d ln(L / (2 pi beta)) / (2 ln theta).
    first, last = (
        d * math.log(context / (2 * math.pi * beta)) / (2 * math.log(theta))
        for beta in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    # The released code bounds the end by d - 1 though there are d / 2 pairs.
    first, last = max(first, 0), min(last, d - 1)
    width = last - first if last != first else 0.001
    return np.clip((np.arange(d // 2) - first) / width, 0, 1)


def _yarn_attention_factor(
    factor: float, mscale: float | None, mscale_all_dim: float | None
) -> float:
    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1

    if mscale and mscale_all_dim:
        return temperature(mscale) / temperature(mscale_all_dim)
    return temperature(1.0)


@spelled
def longrope(
    short_factor: tuple[float, ...],
    long_factor: tuple[float, ...],
    context: float,
    length: float,
    factor: float,
    theta: float = 10_000.0,
    attention_factor: float | None = None,
    partial: float = 1.0,
) -> Encoding:
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
    name = "longrope"
    check_theta(theta)
    check_at_least(1, name, factor=factor, length=length)
    check_at_least(2, name, context=context)  # ln 1 = 0 divides
    check_fraction(partial, name, "partial")
    for key, values in {"short_factor": short_factor, "long_factor": long_factor}.items():
        if not isinstance(values, tuple):
            raise UserError(f"{name}: {key} must be a tuple of numbers, one a pair")
        check_numbers(name, **{f"{key}[{i}]": value for i, value in enumerate(values)})
        if not all(value > 0 for value in values):
            raise UserError(f"{name}: every number of {key} must be above 0")
    chosen = short_factor if length <= context else long_factor

    def divided(d: int) -> np.ndarray:
        if len(chosen) != d // 2:
            raise UserError(
                f"{name}: {len(chosen)} factors for {d // 2} pairs; short_factor and long_factor"
                " have one number for every pair that turns"
            )
        return geometric(d, theta) / np.asarray(chosen, np.float64)

    spelling = spell(
        name, short_factor=short_factor, long_factor=long_factor, context=context, length=length,
        factor=factor, theta=theta, attention_factor=attention_factor, partial=partial,
    )  # fmt: skip
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(context))
    check_numbers(name, attention_factor=attention_factor)
    return Encoding(spelling, lambda d: squeezed(d, partial, divided), attention_factor, theta)


@spelled
def llama3_rope(
    factor: float = 8.0,
    context: float = 8192,
    theta: float = 500_000.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    partial: float = 1.0,
) -> Encoding:
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
    name = "llama3_rope"
    low, high = low_freq_factor, high_freq_factor
    check_theta(theta)
    check_at_least(1, name, factor=factor, context=context)
    check_numbers(name, low_freq_factor=low, high_freq_factor=high)
    check_fraction(partial, name, "partial")
    if not high > low:
        raise UserError(f"{name}: high_freq_factor={high} must be above low_freq_factor={low}")

    def smoothed(d: int) -> np.ndarray:
        cycles = geometric(d, theta) * context / (2 * np.pi)
        smooth = np.clip((cycles - low) / (high - low), 0, 1)
        return geometric(d, theta) * ((1 - smooth) / factor + smooth)

    spelling = spell(
        name, factor=factor, context=context, theta=theta, low_freq_factor=low,
        high_freq_factor=high, partial=partial,
    )  # fmt: skip
    return Encoding(spelling, lambda d: squeezed(d, partial, smoothed), theta=theta)


def check_at_least(least: float, name: str, **values: float) -> None:
    """Refuses numbers below `least` and those that are not finite."""
    check_numbers(name, **values)
    for parameter, value in values.items():
        if not (math.isfinite(value) and value >= least):
            raise UserError(f"{name}: {parameter}={value} must be at least {least}")
