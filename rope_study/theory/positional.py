"""Section 5: heads that attend by position. NoPE has none, RoPE has, at a price in norm."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from rope_study.checks import checked
from rope_study.decoder import (
    Decoder,
    DecoderConfig,
    Edit,
    Probe,
    check_params,
    check_text,
    presets,
)
from rope_study.errors import UserError
from rope_study.rotary import Encoding, Rotary
from rope_study.theory.activation import check_distance, phases

# --- Prop. 5.2 --------------------------------------------------------------------------------


def _all_weights(activations: Mapping[str, Any], weights: jax.Array) -> jax.Array:
    return activations["attention"](lambda attention, queries: attention)


# Hands out attention as the layer computes it.
_ATTENTION = Probe("attention", ("attention",), _all_weights)


@checked
def first_layer_attention(
    config: DecoderConfig, params: dict, tokens: Sequence[int], edit: Edit | None = None
) -> np.ndarray:
    """Attention f32[N, T, T] of a decoder's first layer on one text int[T]."""
    check_params(config, params)
    ids = check_text(config, tokens)
    return np.asarray(_first_layer_attention(config, edit, params, jnp.asarray(ids[None]))[0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first_layer_attention(
    config: DecoderConfig, edit: Edit | None, params: dict, tokens: jax.Array
) -> Any:
    apply = functools.partial(Decoder(config).apply, probes=[_ATTENTION], edit=edit)
    _, weights = apply({"params": params}, tokens)
    return weights["attention"][0]


@functools.partial(jax.jit, static_argnums=0)
def _random_weights(config: DecoderConfig, seed: int) -> dict:
    variables = Decoder(config).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
    return nn.unbox(dict(variables["params"]))


@checked
def prop_5_2(encoding: Rotary, seed: int = 0, weight_scale: float = 1.0) -> np.ndarray:
    """Prop. 5.2: the first layer's attention f32[N, 3, 3] on [BOS, x, x], random weights.

    Without positions (`nope()`) the second x reads both copies of x alike, alpha_33 = alpha_32,
    and BOS takes a share: alpha_33 < 1/2, whatever the weights (1/2 where f32 rounds that share
    off). No such head is diagonal, none reads the previous token. With `rope()` the two differ. It
    holds for the first layer, whose input is the token alone; later layers of NoPE can know
    positions from the causal mask.

    Args:
      encoding: of every layer.
      seed: of the weights.
      weight_scale: multiplies all weights: attention as sharp as one likes.
    """
    config = presets.tiny().with_rotary(encoding)
    # Encodings without arrays of their own share the weights, and what was compiled to make them.
    trained = isinstance(encoding, Encoding) and encoding.trained
    weights = _random_weights(config if trained else presets.tiny(), seed)
    scale = np.float32(weight_scale)
    params = jax.tree.map(lambda a: a * scale, weights)
    # [BOS, x, x]; with random weights the ids mean nothing.
    attention = first_layer_attention(config, params, (0, 1, 1))
    if np.isnan(attention).any():
        raise UserError(f"weight_scale={weight_scale}: the products are beyond f32", "weight_scale")
    return attention


# --- Thm. 5.3 ---------------------------------------------------------------------------------
# q_i = psi at every position, k_j = R^offset psi: offset 0 is the diagonal head, 1 the
# previous-token head. The key is theory.prop_3_1_key(psi, offset, encoding). With norm s = |psi|
# and the share w_k of s^2 in pair k, the activation at distance r is s^2 sum_k w_k cos(g_k (r -
# offset)): s^2 at r = offset, and a gap below that elsewhere.


@checked
def thm_5_3_gaps(
    frequencies: ArrayLike, context: int, offset: int = 0, shares: ArrayLike | None = None
) -> np.ndarray:
    """float64[L]: 1 - sum_k w_k cos(g_k (r - offset)) at distances r = 0..L-1.

    How far below the target an activation lies, for |psi| = 1. A gap that is lost in the rounding
    of its own phase counts as 0: that position cannot be told from the target.

    Args:
      frequencies: g_k, radians per token: one, or [m] in which psi is spread.
      context: L, the keys that the last query reads; it is the hardest row, as it reads the most.
      offset: distance of the target.
      shares: w_k of |psi|^2, [m]; equal ones where not given.
    """
    g = np.atleast_1d(np.asarray(frequencies, np.float64))
    w = np.full(len(g), 1 / len(g)) if shares is None else np.asarray(shares, np.float64)
    if w.shape != g.shape or (w < 0).any() or not math.isclose(w.sum(), 1, rel_tol=1e-9):
        raise UserError(
            f"shares must be {len(g)} numbers from 0 that sum to 1, one a frequency", "shares"
        )
    check_distance(offset, context, "offset")
    turned = phases(g, np.arange(context) - offset)
    gaps = 2 * np.sin(turned / 2) ** 2  # 1 - cos without its cancellation
    gaps[gaps < (1e-15 * turned) ** 2] = 0
    return w @ gaps


@checked
def thm_5_3_attention(
    norm: float,
    frequencies: ArrayLike,
    context: int,
    offset: int = 0,
    shares: ArrayLike | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Attention float64[L] of the last query at distances 0..L-1, for |psi| = norm.

    scale multiplies the logits: head_dim^-0.5 in a decoder, 1 in the paper's statement. Other
    arguments as in `thm_5_3_gaps`.
    """
    with np.errstate(over="ignore"):
        height = scale * np.square(np.float64(norm))
    if not np.isfinite(height):
        raise UserError(f"norm={norm}, scale={scale}: the logits are beyond float64", "norm")
    weights = np.exp(-height * thm_5_3_gaps(frequencies, context, offset, shares))
    return weights / weights.sum()


@checked
def thm_5_3_norm_bounds(
    frequencies: ArrayLike,
    context: int,
    epsilon: float,
    offset: int = 0,
    shares: ArrayLike | None = None,
    scale: float = 1.0,
) -> tuple[float, float]:
    """|psi| (necessary, sufficient) for attention above 1 - epsilon on the target.

    With the smallest gap G to any other distance: log((1 - e) / e) <= scale |psi|^2 G must hold
    against the nearest rival, and log((L - 1) (1 - e) / e) <= scale |psi|^2 G is enough against
    L - 1 such rivals. Before anything wraps around (see `thm_5_3_context`) G = 1 - cos g. Both
    are inf where a rival equals the target.
    """
    return _norm_bounds(_rival_gaps(frequencies, context, offset, shares), epsilon, scale)


def _rival_gaps(
    frequencies: ArrayLike, context: int, offset: int, shares: ArrayLike | None
) -> np.ndarray:
    """float64[L - 1]: of all distances but the target's."""
    return np.delete(thm_5_3_gaps(frequencies, context, offset, shares), offset)


def _norm_bounds(gaps: np.ndarray, epsilon: float, scale: float) -> tuple[float, float]:
    lead = _lead(epsilon, scale)
    if gaps.min() == 0:
        return math.inf, math.inf
    needed, enough = np.array([lead, lead + math.log(len(gaps))]) / (scale * gaps.min())
    return math.sqrt(needed), math.sqrt(enough)


@checked
def thm_5_3_norm(
    frequencies: ArrayLike,
    context: int,
    epsilon: float,
    offset: int = 0,
    shares: ArrayLike | None = None,
    scale: float = 1.0,
) -> float:
    """Thm. 5.3: the smallest |psi| with attention of at least 1 - epsilon on the target.

    By bisection on the softmax over all L positions, between the bounds of `thm_5_3_norm_bounds`:
    attention on the target only grows with |psi|, because every other weight, relative to it, is
    exp(-scale |psi|^2 gap). inf where a rival equals the target.
    """
    gaps = _rival_gaps(frequencies, context, offset, shares)
    low, high = _norm_bounds(gaps, epsilon, scale)
    if math.isinf(high):
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        # Attention 1 / (1 + sum) >= 1 - epsilon, written so that small epsilon keep their digits.
        if np.exp(-scale * middle**2 * gaps).sum() <= epsilon / (1 - epsilon):
            high = middle
        else:
            low = middle
    return high


@checked
def thm_5_3_context(frequency: float, offset: int = 0) -> int:
    """The longest context in which the target's neighbours are its nearest rivals, 0 < g <= pi.

    Up to there a higher frequency is sharper: G = 1 - cos g grows with g. Past it a position
    about one turn away comes nearer than the neighbours, and the norm needed jumps.
    """
    if not 0 < frequency <= math.pi:
        raise UserError(f"frequency={frequency} must lie in (0, pi] radians per token", "frequency")
    return int(2 * math.pi / frequency) + offset


@checked
def thm_5_3_floor(context: int, epsilon: float, offset: int = 0, scale: float = 1.0) -> float:
    """|psi| that a head of ONE frequency needs, whichever it is (not in the paper).

    Dirichlet: some m of 1..n brings any frequency within 2 pi / (n + 1) of its start. With n the
    distance from the target to the farther end of the context, G <= 1 - cos(2 pi / (n + 1)), so
    |psi| grows in proportion to the context. g = 2 pi / (n + 1) attains that gap.
    """
    check_distance(offset, context, "offset")
    farthest = max(offset, context - 1 - offset)
    gap = 2 * math.sin(math.pi / (farthest + 1)) ** 2
    return math.sqrt(_lead(epsilon, scale) / (scale * gap))


def _lead(epsilon: float, scale: float) -> float:
    """log((1 - epsilon) / epsilon): the logit's lead over one rival that takes epsilon."""
    if scale <= 0:
        raise UserError(f"scale={scale} must be above 0", "scale")
    if not 0 < epsilon < 0.5:
        raise UserError(
            f"epsilon={epsilon} must lie in (0, 0.5): attention above 1 - epsilon", "epsilon"
        )
    return math.log((1 - epsilon) / epsilon)
