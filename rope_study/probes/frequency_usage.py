"""How much each rotary frequency is used: mean norm of every pair of q, k and v, before rotation.

Section 4 of Barbero et al. (ICLR 2025), Figs. 3, 4 and 13. By Cauchy-Schwarz the norms bound what
a pair can add to a logit: |<q^(k), k^(k)>| <= ||q^(k)|| ||k^(k)||.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study import rotary
from rope_study.architecture import DecoderConfig
from rope_study.probes.run import Probe, sum_tokens

Array = jax.Array


def pair_norms(x: Array) -> Array:
    """2-norm of every rotary pair: x[..., H] -> f32[..., H/2], fastest pair first."""
    first, second = rotary.pairs(x.astype(jnp.float32))
    return jnp.sqrt(jnp.square(first) + jnp.square(second))


def _measure(activations: Mapping[str, Array], weights: Array) -> dict[str, Array]:
    sums = {name: sum_tokens(pair_norms(activations[name]), weights) for name in ("q", "k", "v")}
    return sums | {"tokens": jnp.sum(weights)}


def _finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
    def means(name: str) -> np.ndarray:
        return stack_padded([layer[name] / layer["tokens"] for layer in totals])

    layers = [(spec, config.of_layer(spec)) for spec in config.layer_specs]
    frequencies = stack_padded([_frequencies(spec.rotary, c.head_dim) for spec, c in layers])
    what = "mean 2-norm of the rotary pair before rotation"
    q, k, v = (means(name) for name in ("q", "k", "v"))
    by_pair = ("layer", "frequency")
    return xarray.Dataset(
        {
            "q": (("layer", "head", "frequency"), q, _about(f"queries: {what}")),
            "k": (("layer", "kv_head", "frequency"), k, _about(f"keys: {what}")),
            "v": (("layer", "kv_head", "frequency"), v, _about(f"values: {what}")),
        },
        coords={
            "layer": np.arange(config.layers),
            "head": np.arange(q.shape[1]),
            "kv_head": np.arange(k.shape[1]),
            "frequency": np.arange(q.shape[2]),
            "inverse_frequency": (
                by_pair,
                frequencies,
                {"units": "rad/token", "long_name": "turn a token; 0: not rotated"},
            ),
            "cycles": (
                by_pair,
                frequencies * context / (2 * np.pi),
                {"units": "1", "long_name": "turns over the context"},
            ),
        },
    )


def stack_padded(layers: list[np.ndarray]) -> np.ndarray:
    """One array [L, ...]; layers with fewer heads or pairs than the largest end in NaN."""
    largest = np.max([layer.shape for layer in layers], axis=0)
    stacked = np.full((len(layers), *largest), np.nan)
    for row, layer in zip(stacked, layers, strict=True):
        row[tuple(slice(size) for size in layer.shape)] = layer
    return stacked


def _about(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}


def _frequencies(encoding: rotary.Rotary, head_dim: int) -> np.ndarray:
    """float64[H/2]; NaN where they are not known: a function of the user's own, or learned ones."""
    if isinstance(encoding, rotary.Encoding) and not hasattr(encoding, "shared_parameters"):
        return encoding.inverse_frequencies(head_dim)
    return np.full(head_dim // 2, np.nan)


frequency_usage = Probe("frequency_usage", ("q", "k", "v"), _measure, _finalize)
