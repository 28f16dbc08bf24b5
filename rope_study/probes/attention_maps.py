"""The attention of heads on one text, as in Figs. 5 to 7 of Barbero et al. (ICLR 2025)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study.decoder import Decoder, check_text, variants
from rope_study.probes import datasets
from rope_study.probes.one_text import (
    check_index,
    query_and_key_coordinates,
    read_activations,
)

Array = jax.Array


def attention_map(
    decoder: Decoder,
    params: dict,
    tokens: Sequence[int],
    layer: int,
    head: int,
    *,
    pieces: Sequence[str] | None = None,
) -> xarray.DataArray:
    """Attention weights [query, key] of a head, each row with sum 1, and 0 on later keys.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: ids int[T] of one text, BOS included. T x T weights of every layer are held.
      layer, head: counted from 0; a query head.
      pieces: labels of the tokens, as tokenizer.pieces(tokens) gives them; they come as the
        coordinates `query_token` and `key_token`.
    """
    layer = check_index(layer, decoder.config.layers, "layer")
    head = check_index(head, decoder.config.heads, "head")
    maps = _maps(decoder, params, tokens, [head], pieces)
    attributes = datasets.attributes(f"attention of layer {layer}, head {head}")
    return maps.isel(layer=layer, head=0, drop=True).assign_attrs(
        attributes, layer=layer, head=head
    )


def attention_maps(
    decoder: Decoder,
    params: dict,
    tokens: Sequence[int],
    *,
    pieces: Sequence[str] | None = None,
) -> xarray.DataArray:
    """Attention weights [layer, head, query, key] of all heads; arguments as of attention_map.

    L x N x T x T weights are held: for 28 layers of 16 heads 7 MiB at 64 tokens, 28 GiB at 4,096.
    """
    return _maps(decoder, params, tokens, list(range(decoder.config.heads)), pieces)


def _maps(
    decoder: Decoder,
    params: dict,
    tokens: Sequence[int],
    heads: list[int],
    pieces: Sequence[str] | None,
) -> xarray.DataArray:
    ids = check_text(decoder.config, tokens)
    coordinates = query_and_key_coordinates(len(ids), pieces)
    weights = read_activations(decoder, params, ids[None], _read_weights, np.array(heads))
    return xarray.DataArray(
        np.stack([layer[0] for layer in weights]),
        dims=("layer", "head", "query", "key"),
        name="attention",
        coords={"layer": range(len(weights)), "head": heads} | coordinates,
        attrs=datasets.attributes("attention") | {"model": variants.describe(decoder.config)},
    )


def _read_weights(activations: Mapping[str, Any], heads: Array) -> Array:
    """f32[B, heads, T, S], put together from blocks of queries."""
    B, T = activations["tokens"].shape

    def reduce(weights: Array, queries: Array) -> Array:
        rows = jnp.take(weights, heads, axis=1)
        return jnp.zeros((B, len(heads), T, rows.shape[-1])).at[:, :, queries].set(rows)

    return activations["attention"](reduce)
