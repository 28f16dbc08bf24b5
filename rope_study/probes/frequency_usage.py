"""How much each rotary frequency is used: mean norm of every pair of q, k and v, before rotation.

Section 4 of Barbero et al. (ICLR 2025), Figs. 3, 4 and 13. By Cauchy-Schwarz the norms bound what
a pair can add to a logit: |<q^(k), k^(k)>| <= ||q^(k)|| ||k^(k)||.

Norms after rotation are not measured: a rotation keeps them, up to an attention factor (YaRN), so
they would be the same numbers at twice the work. A test has it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import xarray

from rope_study import rotary
from rope_study.architecture import DecoderConfig
from rope_study.probes import axes
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
    def means(name: str, dims: tuple[str, ...], what: str) -> tuple:
        layers = [layer[name] / layer["tokens"] for layer in totals]
        long_name = f"{what}: mean 2-norm of the rotary pair before rotation"
        return axes.variable((*dims, "frequency"), layers, long_name)

    return axes.numbered(
        xarray.Dataset(
            {
                "q": means("q", axes.BY_HEAD, "queries"),
                "k": means("k", axes.BY_KV_HEAD, "keys"),
                "v": means("v", axes.BY_KV_HEAD, "values"),
            },
            coords=axes.frequency_coordinates(config, context),
        )
    )


frequency_usage = Probe("frequency_usage", ("q", "k", "v"), _measure, _finalize)
