"""Spectra of attention rows: how its power divides over low, middle and high frequencies.

2410.18067 (ACL 2025): P = |F a|^2 of attention a over token positions, with a Hann window and zero
padding; bands 0 to 1/4, 1/4 to 3/4 and 3/4 to 1 of Nyquist; selectivity max P / (sum P - max P).
These are frequencies of the weights along the text, not of the rotary pairs.

Which rows: the source does not say. Here the row of query i is its attention to the `length` keys
that end with its own, so that all rows have one length; every query with that many keys counts, and
earlier ones do not. Shares are taken row by row and then averaged.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study.checks import checked
from rope_study.decoder import DecoderConfig, Probe
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.run import exact_einsum

Array = jax.Array

BANDS = {"low": (0, 1 / 4), "middle": (1 / 4, 3 / 4), "high": (3 / 4, 1)}
WINDOWS = {"hann": np.hanning, "none": np.ones}


@checked
def spectral(length: int = 64, window: str = "hann") -> Probe:
    """Band shares and selectivity of attention rows by layer and head.

    Args:
      length: keys in a row.
      window: "hann", as in the source, or "none". Hann is 0 on the first and last key of a row, so
        it does not see attention to the query's own token.
    """
    if length < 4:
        raise UserError(f"spectral: length={length} must be at least 4", "length")
    if window not in WINDOWS:
        raise UserError(f"spectral: window={window!r} is not one of {', '.join(WINDOWS)}", "window")

    def measure(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
        return _measure(activations, weights, WINDOWS[window](length).astype(np.float32))

    def finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
        return _finalize(totals, length).assign_attrs(length=length, window=window)

    return Probe("spectral", ("attention",), measure, finalize)


def _measure(activations: Mapping[str, Any], weights: Array, taper: np.ndarray) -> dict[str, Array]:
    length = len(taper)

    def reduce(attention: Array, queries: Array, weights: Array) -> dict[str, Array]:
        keys = queries[:, None] - length + 1 + jnp.arange(length)  # [t, length]
        counted = weights[:, queries] * (keys[:, 0] >= 0)
        attention = attention * weights[:, None, None, :]
        places = jnp.broadcast_to(jnp.maximum(keys, 0), (*attention.shape[:2], *keys.shape))
        rows = jnp.take_along_axis(attention, places, axis=-1)
        shares, selectivity, total = spectrum(rows * taper)
        counted = counted[:, None] * (total > 0)  # [B, N, t]; no power, no shares
        return {
            "rows": jnp.sum(counted, axis=(0, 2)),
            "shares": exact_einsum("bntx,bnt->nx", shares, counted),
            "selectivity": exact_einsum("bnt,bnt->n", selectivity, counted),
        }

    return activations["attention"](reduce, weights)


def spectrum(rows: Array) -> tuple[Array, Array, Array]:
    """Band shares [..., 3], selectivity and total power [...] of rows[..., n].

    Zero padding to 2n keeps the two ends of a row apart. Rows are short, so the transform is two
    matrix products: an FFT is not split over devices, so each would gather the rows of all, and on
    a host with more fake devices than cores it waited for itself (jax 0.11).
    """
    n = rows.shape[-1]
    angles = np.pi * np.outer(np.arange(n), np.arange(n + 1)) / n
    waves = (wave(angles).astype(np.float32) for wave in (np.cos, np.sin))
    cos, sin = (exact_einsum("...n,nf->...f", rows, wave) for wave in waves)
    power = jnp.square(cos) + jnp.square(sin)
    frequencies = np.arange(n + 1) / n  # of Nyquist, which is in the last band
    bands = [
        jnp.sum(power[..., (frequencies >= low) & ((frequencies < high) | (high == 1))], axis=-1)
        for low, high in BANDS.values()
    ]
    total, largest = jnp.sum(power, axis=-1), jnp.max(power, axis=-1)
    safe = jnp.where(total > 0, total, 1)
    rest = jnp.where(total > largest, total - largest, safe)
    return jnp.stack(bands, axis=-1) / safe[..., None], largest / rest, total


def _finalize(totals: list[dict], length: int) -> xarray.Dataset:
    if not any(layer["rows"].any() for layer in totals):
        raise UserError(
            f"spectral: no text has length={length} tokens; give longer texts or less", "length"
        )

    def mean(name: str, dims: tuple[str, ...], long_name: str) -> tuple:
        layers = []
        for layer in totals:
            rows = np.where(layer["rows"] > 0, layer["rows"], np.nan)
            layers.append((layer[name].T / rows).T)
        return datasets.variable(dims, layers, long_name)

    return datasets.number_axes(
        xarray.Dataset(
            {
                "share": mean(
                    "shares", (*datasets.BY_HEAD, "band"), "mean share of power in the band"
                ),
                "selectivity": mean(
                    "selectivity", datasets.BY_HEAD, "mean of the largest power over the rest"
                ),
                "rows": datasets.variable(
                    datasets.BY_HEAD, [layer["rows"] for layer in totals], "rows of attention read"
                ),
            },
            coords={"band": np.array(list(BANDS), object)},
        )
    )
