"""Rotary pairs with outlying norms, how far they turn, and the angle from key to query.

Rotary offset features (2503.01832). A pair adds |q^(k)| |k^(k)| cos(phi_k + g_k (i - j)) to the
logit of query i on key j, phi_k the angle of q^(k) less that of k^(k) before rotation. A large pair
that turns far would add now much, now as much less; so it is predicted that outliers stay within
one turn, c_k = g_k L / 2 pi < 1. Stricter, a pair that keeps its sign over all distances 0..L has
phi_k and phi_k + g_k L on one side: c_k <= 1/2.

phi_k is that of a query and the key of the same token, and a circular mean over tokens: the angle
of the sum of unit vectors. The length of their mean, `resultant`, is 1 where all agree and near 0
where the mean angle says nothing. The first token is left out: as a sink its key is apart.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study import rotary
from rope_study.checks import checked
from rope_study.decoder import DecoderConfig, Probe
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.frequency_usage import pair_norms
from rope_study.probes.run import but_first, sum_tokens

Array = jax.Array

BY_PAIR = ("layer", "head", "pair")


@checked
def rotary_outliers(factor: float = 2.0) -> Probe:
    """Norms and angles of every pair, which pairs are outliers, and how many stay within a turn.

    Args:
      factor: an outlier's mean norm is above so many times the mean over the pairs of its head. It
        cannot be above as many times as there are pairs.
    """
    if not factor > 0:
        raise UserError(f"rotary_outliers: factor={factor} must be positive", "factor")

    def finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
        return _finalize(totals, context, config, factor)

    return Probe("rotary_outliers", ("q", "k"), _measure, finalize)


def _measure(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
    weights = but_first(weights)
    q, k = activations["q"], activations["k"]
    cos, sin = pair_angles(q, jnp.repeat(k, q.shape[2] // k.shape[2], axis=2))
    sums = {"q": pair_norms(q), "k": pair_norms(k), "cos": cos, "sin": sin}
    return {name: sum_tokens(value, weights) for name, value in sums.items()} | {
        "tokens": jnp.sum(weights)
    }


def pair_angles(q: Array, k: Array) -> tuple[Array, Array]:
    """cos and sin f32[..., H/2] of the angle of each pair of q[..., H] less that of k's.

    Both are 0 where a pair is 0 and has no angle.
    """
    (q1, q2), (k1, k2) = (rotary.pairs(x.astype(jnp.float32)) for x in (q, k))
    norms = pair_norms(q) * pair_norms(k)
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return (q1 * k1 + q2 * k2) * inverse, (q2 * k1 - q1 * k2) * inverse


def _finalize(
    totals: list[dict], context: int, config: DecoderConfig, factor: float
) -> xarray.Dataset:
    if not totals[0]["tokens"]:
        raise UserError("rotary_outliers: no text goes on after its first token")

    def mean(name: str) -> list[np.ndarray]:
        return [layer[name] / layer["tokens"] for layer in totals]

    cos, sin = mean("cos"), mean("sin")
    what = "mean 2-norm of the rotary pair before rotation"
    dataset = xarray.Dataset(
        {
            "q": datasets.variable(BY_PAIR, mean("q"), f"queries: {what}"),
            "k": datasets.variable(("layer", "kv_head", "pair"), mean("k"), f"keys: {what}"),
            "phi": datasets.variable(
                BY_PAIR, list(map(np.arctan2, sin, cos)), "mean angle from key to query", "rad"
            ),
            "resultant": datasets.variable(
                BY_PAIR, list(map(np.hypot, sin, cos)), "how far the angles agree"
            ),
        },
        coords=datasets.frequency_coordinates(config, context),
    )
    dataset["sign"] = sign_over(dataset.phi, 2 * np.pi * dataset.cycles)
    for name in ("q", "k"):
        dataset = dataset.assign(_outliers(dataset[name], dataset.cycles, factor))
    within = (dataset.cycles < 1).where(dataset.cycles.notnull())
    dataset["pairs_within"] = within.mean().assign_attrs(
        datasets.attributes("share of all pairs that stay within one turn")
    )
    return datasets.number_axes(dataset).assign_attrs(factor=factor)


def _outliers(
    norms: xarray.DataArray, cycles: xarray.DataArray, factor: float
) -> dict[str, xarray.DataArray]:
    """Which of norms[layer, head, pair] are outliers, and the share of them with c < 1."""
    outlier = norms > factor * norms.mean("pair")
    within = (cycles < 1).where(outlier & cycles.notnull()).mean()
    return {
        f"{norms.name}_outlier": outlier.assign_attrs(
            datasets.attributes(f"above {factor:g} times the mean over the pairs of its head")
        ),
        f"{norms.name}_outliers_within": within.assign_attrs(
            datasets.attributes("share of outliers that stay within one turn; NaN: there is none")
        ),
    }


def sign_over(phi: xarray.DataArray, turn: xarray.DataArray) -> xarray.DataArray:
    """The sign of cos(phi + x) over all x from 0 to turn (radians): 1 or -1; 0: it changes."""

    def past(edge: float) -> xarray.DataArray:
        return (phi + edge) % (2 * np.pi)

    room = np.pi - turn
    positive = past(np.pi / 2) <= room  # phi from -pi/2 to pi/2 - turn
    negative = past(-np.pi / 2) <= room  # phi from pi/2 to 3 pi/2 - turn
    sign = positive.astype(float) - negative.astype(float)
    known = turn.notnull() & phi.notnull()
    return sign.where(known).assign_attrs(
        datasets.attributes("sign of what the pair adds over all distances; 0: it changes")
    )
