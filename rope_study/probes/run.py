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

from rope_study.checks import checked
from rope_study.decoder import (
    Decoder,
    DecoderConfig,
    Edit,
    Probe,
    check_length,
    check_params,
    each_batch,
    layout_of,
    variants,
)
from rope_study.decoder.config import AUTO, REFERENCE
from rope_study.errors import UserError
from rope_study.files import atomic, check_writable
from rope_study.files.paths import to_path
from rope_study.probes import datasets
from rope_study.sharding import Layout, compiler

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
        `encode_batch` gives them; filled up to divide over the devices.
      probes: what to measure.
      text: names what was read, for the figures.
      edit: replaces activations before they are measured, as in Decoder.

    Returns:
      {probe.name: Dataset}.

    Raises:
      UserError: what is no probe, no batches or only padding, or texts that decoder.inputs
        refuses: ids that the model does not have, padding on the left, no BOS where it needs it; or
        parameters of another decoder.
    """
    _check(probes)
    layout, measure = compiled(decoder, params, probes, edit)
    config = in_f32(decoder, params)[0].config
    totals, count, context = None, 0, 0
    for tokens, weights in each_batch(config, batches):
        if tokens.shape[1] > context:
            check_length(config, tokens.shape[1])
        tokens, weights = fill_batch(layout, tokens, weights)
        totals = _add(totals, measure(params, layout.place(tokens), layout.place(weights)))
        count += int(weights.sum())
        context = max(context, tokens.shape[1])
    if totals is None:
        raise UserError("nothing to probe: no batches were given")
    if not count:
        raise UserError("nothing to probe: all weights are 0", "weights")
    source = {"model": variants.describe(config), "text": text, "tokens": count, "context": context}
    read_from = datasets.with_trained_frequencies(config, params)
    return _finalize(probes, totals, read_from, source)


class Repeated:
    """Probes of one text, again and again while the parameters change; nothing is waited for.

    `start` is a program that the devices run in their order, so training may go on at once, and
    `finish` makes datasets of it later. The batches stay on the devices.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: dict,
        batches: Iterable[tuple[np.ndarray, np.ndarray]],
        probes: Sequence[Probe],
        text: str = "",
    ):
        """Arguments as `run`; of `params` only the types are read."""
        _check(probes)
        self._probes = probes
        layout, self._measure = compiled(decoder, params, probes)
        self._config, self._batches, count, context = decoder.config, [], 0, 0
        for batch in each_batch(decoder.config, batches):
            tokens, weights = fill_batch(layout, *batch)
            self._batches.append((layout.place(tokens), layout.place(weights)))
            count, context = count + int(weights.sum()), max(context, tokens.shape[1])
        model = variants.describe(decoder.config)
        self._source = {"model": model, "text": text, "tokens": count, "context": context}

    def start(self, params: dict) -> tuple[list[Any], DecoderConfig]:
        """What `finish` takes; the parameters may be donated afterwards."""
        read_from = datasets.with_trained_frequencies(self._config, params)
        return [self._measure(params, *batch) for batch in self._batches], read_from

    def finish(self, started: tuple[list[Any], DecoderConfig]) -> dict[str, xarray.Dataset]:
        """Waits for what was started: {probe.name: Dataset}."""
        sums, read_from = started
        return _finalize(self._probes, functools.reduce(_add, sums, None), read_from, self._source)


def _add(totals: Any, sums: Any) -> Any:
    """Summed on the host in float64: f32 sums over millions of tokens would lose digits."""
    sums = jax.tree.map(lambda a: np.asarray(a, np.float64), sums)
    return sums if totals is None else jax.tree.map(np.add, totals, sums)


def _finalize(
    probes: Sequence[Probe], totals: Any, config: DecoderConfig, source: dict[str, Any]
) -> dict[str, xarray.Dataset]:
    return {
        probe.name: finalize(totals[probe.name], source["context"], config).assign_attrs(source)
        for probe, finalize in zip(probes, _check(probes), strict=True)
    }


def compiled(
    decoder: Decoder, params: Any, probes: Sequence[Probe], edit: Edit | None = None
) -> tuple[Layout, Callable[[dict, Array, Array], dict]]:
    """The layout, and (params, tokens, weights) -> {probe.name: sums by layer}, in f32 and jitted.

    Of `params` only the types are read.
    """
    probed, layout = in_f32(decoder, params)
    options = compiler.reading_options(params, layout)
    return layout, _jitted(probed.config, layout, tuple(probes), edit, tuple(options.items()))


@functools.lru_cache(maxsize=8)
def _jitted(
    config: DecoderConfig,
    layout: Layout,
    probes: tuple[Probe, ...],
    edit: Edit | None,
    options: tuple[tuple[str, Any], ...],
) -> Callable[[dict, Array, Array], dict]:
    """Kept, so that the same probes on other texts do not compile again."""
    features = functools.partial(Decoder(config, layout).apply, method="features")

    def measure(params: dict, tokens: Array, weights: Array) -> Any:
        _, sums = features({"params": params}, tokens, probes=probes, weights=weights, edit=edit)
        return sums

    return jax.jit(measure, out_shardings=layout.sharding(), compiler_options=dict(options))


def fill_batch(
    layout: Layout, tokens: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """tokens and weights [B, T] with more, of weight 0, so that B and T divide over the devices."""
    filled = layout.fill_tokens(tokens)
    more = [(0, after - before) for before, after in zip(tokens.shape, filled.shape, strict=True)]
    return filled, np.pad(weights, more)


@checked
def save(dataset: xarray.Dataset, path: str | Path) -> None:
    """Writes NetCDF (.nc) or Zarr (.zarr), whichever the path ends in, whole or not at all.

    Raises:
      UserError: another ending, a folder that is no Zarr store, or a place that cannot be written.
    """
    path = to_path(path, "path")
    # Of Zarr format 3 consolidated metadata is no part yet: writing or reading it would warn.
    to_zarr = functools.partial(dataset.to_zarr, zarr_format=2)
    write = {".nc": dataset.to_netcdf, ".zarr": to_zarr}.get(path.suffix)
    if write is None:
        raise UserError(f"{path}: a dataset is saved as .nc (NetCDF) or .zarr (Zarr)", "path")
    store = any((path / name).exists() for name in (".zgroup", "zarr.json"))
    if path.is_dir() and any(path.iterdir()) and not (path.suffix == ".zarr" and store):
        raise UserError(f"{path} is a folder with other files; nothing was changed", "path")
    check_writable(path, "path")
    try:
        with atomic(path) as part:
            write(part)
    except RuntimeError as error:  # of the NetCDF library, when the disk is full
        raise UserError(f"{path} cannot be written ({error})", "path") from error


def _check(probes: Sequence[Probe]) -> list[Callable]:
    """What makes each probe's dataset of its sums; UserError where it is none or has none."""
    if not isinstance(probes, list | tuple) or not probes:
        raise UserError(f"probes={probes!r} must be a list of probes, at least one", "probes")
    for probe in probes:
        if not isinstance(probe, Probe):
            name = getattr(probe, "__name__", probe)
            raise UserError(f"{name} is no probe; a function that makes one is to be called first")
    names = [probe.name for probe in probes]
    if len(set(names)) < len(names):
        raise UserError(f"two of the probes have one name: {', '.join(names)}; run them apart")
    finalizers = [probe.finalize for probe in probes if probe.finalize is not None]
    if len(finalizers) < len(probes):
        bare = ", ".join(probe.name for probe in probes if probe.finalize is None)
        raise UserError(f"{bare}: without finalize a probe has no dataset; run it by Decoder.apply")
    return finalizers


def in_f32(decoder: Decoder, params: Any) -> tuple[Decoder, Layout]:
    """The decoder as probes run it, f32 on every device, and the layout it has then.

    By any backend that computes in f32: weights that a probe reads come of their own from the same
    queries and keys.

    Raises:
      UserError: the parameters are of another decoder.
    """
    check_params(decoder.config, params)
    config, layout = decoder.config, layout_of(decoder)
    backend = REFERENCE if config.attention == REFERENCE else AUTO
    config = dataclasses.replace(config, compute_dtype="float32", attention=backend)
    return Decoder(config, layout), layout


# In f32 on every device: otherwise GPUs and TPUs would round the inputs of products.
exact_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def but_first(weights: Array) -> Array:
    """Weights f32[B, T], 0 for the first token, which is apart: a sink, or with nothing to read.

    By a mask: where devices share the length, XLA writes weights.at[:, 0].set(0) wrongly (0.10).
    """
    return weights * (jnp.arange(weights.shape[1]) > 0)


def sum_tokens(values: Array, weights: Array) -> Array:
    """Weighted sum over tokens in f32: values [B, T, ...], weights f32[B, T] -> [...].

    Not a matrix product, which would write the values out first: three times as slow on a CPU.
    """
    weights = jnp.expand_dims(weights, tuple(range(2, values.ndim)))
    return jnp.sum(values * weights, axis=(0, 1), dtype=jnp.float32)
