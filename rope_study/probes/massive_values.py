"""Massive values: dimensions of q and k that are far larger than the others.

Jin et al. (2502.01563, ICML 2025): M[h, d] = 2-norm of Q[:, h, d] over all tokens, massive where
M > 5 mean(M). They occur in q and k of models with RoPE, and not in v. The paper's mean is that of
the head; the replication (drope-activations) takes that of all heads of the layer: both are here.
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
from rope_study.probes.datasets import QUANTITIES
from rope_study.probes.run import sum_tokens

Array = jax.Array


@checked
def massive_values(factor: float = 5.0) -> Probe:
    """M of every dimension and rotary pair of q, k (before rotation) and v, and which are massive.

    Args:
      factor: how many times the mean M a massive M is. A dimension cannot be above head_dim times
        its head's mean, so small heads have none whatever they do.
    """
    if not factor > 0:
        raise UserError(f"massive_values: factor={factor} must be positive", "factor")

    def finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
        return _finalize(totals, context, config, factor)

    return Probe("massive_values", tuple(QUANTITIES), _measure, finalize)


def _measure(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
    return {
        name: sum_tokens(jnp.square(activations[name].astype(jnp.float32)), weights)
        for name in QUANTITIES
    }


def _finalize(
    totals: list[dict], context: int, config: DecoderConfig, factor: float
) -> xarray.Dataset:
    variables = {}
    for name, what in QUANTITIES.items():
        dims = datasets.BY_HEAD if name == "q" else datasets.BY_KV_HEAD
        squares = [layer[name] for layer in totals]
        of_pairs = [np.add(*rotary.pairs(square)) for square in squares]
        variables[name] = datasets.variable(
            (*dims, "dimension"), _roots(squares), f"{what}: 2-norm of a dimension over all tokens"
        )
        variables[f"{name}_pair"] = datasets.variable(
            (*dims, "pair"), _roots(of_pairs), f"{what}: 2-norm of a pair over all tokens"
        )
    dataset = xarray.Dataset(
        variables, coords=datasets.frequency_coordinates(config, context) | _pairs(config)
    )
    for name in QUANTITIES:
        dataset = dataset.assign(_massive(dataset[name], factor))
    return datasets.number_axes(dataset).assign_attrs(factor=factor)


def _massive(norms: xarray.DataArray, factor: float) -> dict[str, xarray.DataArray]:
    """Which of norms[layer, head, dimension] are massive, by the mean of the head and by all's."""
    head = norms.dims[1]
    of_head = norms > factor * norms.mean("dimension")
    of_layer = norms > factor * norms.mean([head, "dimension"])
    against = f"above {factor:g} times the mean over"
    return {
        f"{norms.name}_massive_by_head": of_head.assign_attrs(
            datasets.attributes(f"{against} its head")
        ),
        f"{norms.name}_massive_by_layer": of_layer.assign_attrs(
            datasets.attributes(f"{against} all heads of the layer")
        ),
    }


def _roots(squares: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sqrt(square) for square in squares]


def _pairs(config: DecoderConfig) -> dict[str, tuple]:
    """The rotary pair of every dimension, by layer, as head_dim may differ."""
    layers = []
    for spec in config.layer_specs:
        pairs = jnp.arange(config.of_layer(spec).head_dim // 2)
        layers.append(np.asarray(rotary.unpairs(pairs, pairs)))
    long_name = "rotary pair that the dimension belongs to"
    return {"pair_of_dimension": datasets.variable(("layer", "dimension"), layers, long_name)}
