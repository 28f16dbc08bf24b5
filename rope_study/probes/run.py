"""Running probes over batches of text."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study import sharding
from rope_study.decoder import Decoder, DecoderConfig, Edit, Probe, check_bos, variants
from rope_study.errors import UserError
from rope_study.sharding import compiler

Array = jax.Array


def run(
    decoder: Decoder,
    params: dict,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    probes: Sequence[Probe],
    *,
    text: str = "",
    edit: Edit | None = None,
) -> dict[str, xarray.Dataset]:
    """Streams batches through the decoder; activations are f32 whatever it was trained in.

    Args:
      decoder: with a layout, whose devices share each batch.
      params: its parameters.
      batches: (tokens int32[B, T], weights f32[B, T], 0 on padding), as a tokenizer's
        `encode_batch` gives them; B must divide over the devices of the batch axis.
      probes: what to measure.
      text: names what was read, for the figures.
      edit: replaces activations before they are measured, as in Decoder.

    Returns:
      {probe.name: Dataset}.

    Raises:
      UserError: what is no probe, no batches, rows that do not divide over the devices, or texts
        without BOS for a model that needs it.
    """
    _check(probes)
    probed, measure = compiled(decoder, params, probes, edit)
    layout = probed.layout
    totals, count, context = None, 0, 0
    for tokens, weights in batches:
        check_bos(probed.config, tokens)
        part = measure(params, layout.place(tokens), layout.place(weights))
        # Summed on the host in float64: f32 sums over millions of tokens would lose digits.
        part = jax.tree.map(lambda a: np.asarray(a, np.float64), part)
        totals = part if totals is None else jax.tree.map(np.add, totals, part)
        count += int(weights.sum())
        context = max(context, tokens.shape[1])
    if totals is None:
        raise UserError("nothing to probe: no batches were given")
    about = {"model": describe(probed.config), "text": text, "tokens": count, "context": context}
    return {
        probe.name: probe.finalize(totals[probe.name], context, probed.config).assign_attrs(about)
        for probe in probes
    }


def compiled(
    decoder: Decoder, params: Any, probes: Sequence[Probe], edit: Edit | None = None
) -> tuple[Decoder, Callable]:
    """The decoder in f32, and (params, tokens, weights) -> {probe.name: sums by layer}, jitted.

    Of `params` only the types are read.
    """
    probed = in_f32(decoder)
    options = compiler.reading_options(params, probed.layout)
    return probed, _jitted(probed, tuple(probes), edit, tuple(options.items()))


@functools.lru_cache(maxsize=8)
def _jitted(decoder: Decoder, probes: tuple, edit: Edit | None, options: tuple) -> Callable:
    """Kept, so that the same probes on other texts do not compile again."""

    def measure(params: dict, tokens: Array, weights: Array) -> dict:
        return decoder.apply(
            {"params": params}, tokens, probes=probes, weights=weights, edit=edit, method="features"
        )[1]

    return jax.jit(measure, out_shardings=decoder.layout.sharding(), compiler_options=dict(options))


def describe(config: DecoderConfig) -> str:
    """One line that names a decoder, for titles."""
    names = dict.fromkeys(variants.name_of(spec) for spec in config.pattern)
    shape = f"{config.layers} layers x {config.d_model}, {' / '.join(names)}"
    return shape if config.source is None else f"{config.source}, {shape}"


def save(dataset: xarray.Dataset, path: str | Path) -> None:
    """Writes NetCDF (.nc) or Zarr (.zarr), whichever the path ends in."""
    suffix = Path(path).suffix
    if suffix == ".nc":
        dataset.to_netcdf(path)
    elif suffix == ".zarr":
        dataset.to_zarr(path, mode="w")
    else:
        raise UserError(f"{path}: a dataset is saved as .nc (NetCDF) or .zarr (Zarr)")


def _check(probes: Sequence[Probe]) -> None:
    for probe in probes:
        if not isinstance(probe, Probe):
            name = getattr(probe, "__name__", probe)
            raise UserError(f"{name} is no probe; a function that makes one is to be called first")
    names = [probe.name for probe in probes]
    if len(set(names)) < len(names):
        raise UserError(f"two of the probes have one name: {', '.join(names)}; run them apart")


def in_f32(decoder: Decoder) -> Decoder:
    """The same decoder as probes run it: f32 and the reference backend, with a layout."""
    config = dataclasses.replace(decoder.config, compute_dtype="float32", attention="reference")
    return Decoder(config, decoder.layout or sharding.one_device())


def sum_tokens(values: Array, weights: Array) -> Array:
    """Weighted sum over tokens in f32: values [B, T, ...], weights f32[B, T] -> [...].

    Not a matrix product, which would write the values out first: three times as slow on a CPU.
    """
    weights = jnp.expand_dims(weights, tuple(range(2, values.ndim)))
    return jnp.sum(values * weights, axis=(0, 1), dtype=jnp.float32)
