"""How much each rotary frequency is used: mean norm of every pair of q, k and v, before rotation.

Section 4 of Barbero et al. (ICLR 2025), Figs. 3, 4 and 13. By Cauchy-Schwarz the norms bound what
a pair can add to a logit: |<q^(k), k^(k)>| <= ||q^(k)|| ||k^(k)||.

Norms after rotation are not measured: a rotation keeps them, up to a scaling (YaRN), so they
would be the same numbers at twice the work. A test has it.
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
from rope_study.probes.run import sum_tokens

Array = jax.Array


def pair_norms(x: Array) -> Array:
    """2-norm of every rotary pair: x[..., H] -> f32[..., H/2], fastest pair first."""
    first, second = rotary.pairs(x.astype(jnp.float32))
    return jnp.sqrt(jnp.square(first) + jnp.square(second))


def _measure(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
    sums = {name: sum_tokens(pair_norms(activations[name]), weights) for name in ("q", "k", "v")}
    return sums | {"tokens": jnp.sum(weights)}


def _finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
    def means(name: str, dims: tuple[str, ...], what: str) -> tuple:
        layers = [layer[name] / layer["tokens"] for layer in totals]
        long_name = f"{what}: mean 2-norm of the rotary pair before rotation"
        return datasets.variable((*dims, "pair"), layers, long_name)

    return datasets.number_axes(
        xarray.Dataset(
            {
                "q": means("q", datasets.BY_HEAD, "queries"),
                "k": means("k", datasets.BY_KV_HEAD, "keys"),
                "v": means("v", datasets.BY_KV_HEAD, "values"),
            },
            coords=datasets.frequency_coordinates(config, context),
        )
    )


frequency_usage = Probe("frequency_usage", ("q", "k", "v"), _measure, _finalize)


@checked
def slow_bands(usage: xarray.Dataset, name: str = "k") -> list[xarray.Dataset]:
    """Where the band of slow, much used pairs begins, as the paper reads off its Fig. 10.

    The paper names places by eye: about 6e-4 rad/token in Gemma 7B and 1e-4 in Llama 3.1 8B. Here
    the band is the slowest pairs, without a gap, whose norm is above the mean over pairs; norms
    are means over layers and heads.

    Args:
      usage: of frequency_usage.
      name: "q" or "k".

    Returns:
      A Dataset for each set of frequencies that layers share, those of the first layer first:
      `relative_norm`[pair], norm over mean norm; `begins`, the frequency (rad/token) of the
      band's fastest pair, NaN where there is no band; and the attribute `layers`.
    """
    datasets.check_made_by("probes.frequency_usage", usage, drawn=False)
    if name not in ("q", "k"):
        raise UserError(f"slow_bands: name={name!r} is not one of q, k", "name")
    frequencies = usage.inverse_frequency.values
    keys = [row.tobytes() for row in frequencies]
    bands = []
    for key in dict.fromkeys(keys):
        layers = [layer for layer, other in enumerate(keys) if other == key]
        norms = usage[name].isel(layer=layers).mean(["layer", "head" if name == "q" else "kv_head"])
        relative = norms.values / np.nanmean(norms.values)
        slow = np.cumprod(relative[::-1] > 1)[::-1].astype(bool)
        shared = frequencies[layers[0]]
        begins = shared[slow][0] if slow.any() else np.nan
        bands.append(
            xarray.Dataset(
                {"relative_norm": ("pair", relative), "begins": begins},
                coords={"inverse_frequency": ("pair", shared, datasets.FREQUENCY)},
                attrs=usage.attrs | {"layers": usage.layer.values[layers].tolist()},
            )
        )
    return bands
