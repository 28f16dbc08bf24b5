"""Attention sinks: how much attention goes to the first token, and how far a changed token reaches.

alpha_k = mean over queries i >= k of A_ik, and Sink_k^eps = share of texts, layers and heads with
alpha_k > eps: Gu et al. (2410.10781), with texts of 64 tokens and eps = 0.3; Barbero et al.
(2504.02732) take eps = 0.8. alpha depends on the length of the texts, as the first query has
nothing but the first token to read: compare models on texts of one length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study.checks import checked
from rope_study.decoder import Decoder, DecoderConfig, Probe, check_text
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.one_text import check_index, read_activations
from rope_study.probes.run import exact_einsum

Array = jax.Array


@checked
def sinks(place: int = 0, thresholds: Sequence[float] = (0.3, 0.8), bins: int = 20) -> Probe:
    """alpha of the token at a place, 0 for the first: its mean, its distribution and its sink rate.

    Args:
      place: which token; texts in which nothing follows it do not count.
      thresholds: the eps of Sink^eps.
      bins: of the histogram of alpha over texts, from 0 to 1.
    """
    if place < 0 or bins < 1 or not all(0 <= t < 1 for t in thresholds):
        raise UserError(
            f"sinks: place={place} and bins={bins} must be at least 0 and 1, and"
            f" thresholds={tuple(thresholds)} in [0, 1)"
        )
    limits = np.array(thresholds, np.float32)

    def measure(activations: Mapping[str, Any], weights: Array) -> dict[str, Array]:
        return _measure(activations, weights, place, limits, bins)

    def finalize(totals: list[dict], context: int, config: DecoderConfig) -> xarray.Dataset:
        return _finalize(totals, place, thresholds, bins)

    return Probe("sinks", ("attention",), measure, finalize)


def _measure(
    activations: Mapping[str, Any], weights: Array, place: int, limits: np.ndarray, bins: int
) -> dict[str, Array]:
    T = weights.shape[1]
    counts = weights * (jnp.arange(T) >= place)
    if place >= T:
        counts, place = jnp.zeros_like(counts), 0

    def reduce(attention: Array, queries: Array, counts: Array) -> Array:
        return exact_einsum("bnt,bt->bn", attention[..., place], counts[:, queries])

    queries = jnp.sum(counts, axis=1)  # [B], those that read the token
    summed = activations["attention"](reduce, counts)
    alpha = summed / jnp.maximum(queries, 1)[:, None]  # [B, N]
    texts = (queries * weights[:, place] > 1).astype(jnp.float32)
    bin_of_alpha = jnp.clip((alpha * bins).astype(int), 0, bins - 1)
    return {
        "texts": jnp.sum(texts),
        "alpha": exact_einsum("bn,b->n", alpha, texts),
        "above": exact_einsum("bne,b->ne", alpha[..., None] > limits, texts),
        "histogram": exact_einsum("bnx,b->nx", jax.nn.one_hot(bin_of_alpha, bins), texts),
    }


def _finalize(
    totals: list[dict], place: int, thresholds: Sequence[float], bins: int
) -> xarray.Dataset:
    texts = int(totals[0]["texts"])
    if not texts:
        raise UserError(
            f"sinks: no text goes on after place={place}, so there is no alpha", "place"
        )

    def mean(name: str, long_name: str, *dims: str) -> tuple:
        layers = [layer[name] / texts for layer in totals]
        return datasets.variable((*datasets.BY_HEAD, *dims), layers, long_name)

    dataset = xarray.Dataset(
        {
            "alpha": mean("alpha", "mean attention on the token over queries, mean over texts"),
            "above": mean("above", "share of texts with alpha above the threshold", "threshold"),
            "histogram": mean("histogram", "share of texts with alpha in the bin", "bin"),
        },
        coords={
            "threshold": (
                "threshold",
                np.array(thresholds, np.float64),
                datasets.attributes("eps"),
            ),
            "bin": (
                "bin",
                (np.arange(bins) + 0.5) / bins,
                datasets.attributes("alpha, middle of the bin"),
            ),
        },
        attrs={"place": place, "texts": texts},
    )
    rate = dataset.above.mean(datasets.BY_HEAD)
    dataset["sink_rate"] = rate.assign_attrs(
        datasets.attributes(
            "Sink^eps: share of texts, layers and heads with alpha above the threshold"
        )
    )
    return datasets.number_axes(dataset)


# --- how far a changed token reaches ----------------------------------------------------------


def perturbation_spread(
    decoder: Decoder, params: dict, tokens: Sequence[int], place: int, replacement: int
) -> xarray.Dataset:
    """How far the residual stream moves when one token is replaced, with BOS and without.

    Barbero et al. (2504.02732) replace "greatest" by "best" and see the change spread further
    where there is no BOS to take up attention. Works on any decoder, also on those that give
    garbage without BOS: that is what is measured.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: ids int[T] of one text that begins with BOS.
      place: of the token to replace, after BOS.
      replacement: the id to put there.

    Returns:
      `change`[bos, layer, position], the 2-norm of the difference in the residual stream after
      each layer, and `relative`, over the norm of the text's own. `bos` is "with" and "without";
      positions are those with BOS, and that of BOS is NaN without.
    """
    ids = check_text(decoder.config, tokens, least=2)
    place = check_index(place, len(ids), "place")
    if place == 0:
        raise UserError("place=0 is BOS, which is kept or left out; replace a later token", "place")
    replacement = check_index(replacement, decoder.config.vocab_size, "replacement")
    if ids[place] == replacement:
        raise UserError(f"the token at place={place} is {replacement} already", "replacement")
    changed = ids.copy()
    changed[place] = replacement
    both = np.stack([ids, changed])
    with_bos = _difference(decoder, params, both)
    without = _difference(decoder, params, both[:, 1:])
    without = np.pad(without, [(0, 0), (0, 0), (1, 0)], constant_values=np.nan)
    change, relative = np.stack([with_bos, without], axis=1)
    dims = ("bos", "layer", "position")
    dataset = xarray.Dataset(
        {
            "change": (
                dims,
                change,
                datasets.attributes("2-norm of the change of the residual stream"),
            ),
            "relative": (
                dims,
                relative,
                datasets.attributes("the same over the 2-norm of the stream"),
            ),
        },
        coords={"bos": np.array(["with", "without"], object)},
        attrs={"place": place, "token": int(ids[place]), "replacement": replacement},
    )
    return datasets.number_axes(dataset)


def _difference(decoder: Decoder, params: dict, both: np.ndarray) -> np.ndarray:
    """float64[2, L, T]: 2-norms of the difference of two texts int[2, T], and over the first's."""
    streams = np.stack(read_activations(decoder, params, both, _residual)).astype(np.float64)
    change = np.linalg.norm(streams[:, 1] - streams[:, 0], axis=-1)
    return np.stack([change, change / np.linalg.norm(streams[:, 0], axis=-1)])


def _residual(activations: Mapping[str, Any]) -> Array:
    return activations["residual"]
