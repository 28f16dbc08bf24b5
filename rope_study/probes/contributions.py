"""What each rotary pair adds to one logit, beside the most it could add.

Tables 3 to 5 and Fig. 7 of Barbero et al. (ICLR 2025): a logit before scaling is
q^T k = sum_k q^(k)T k^(k) over rotated pairs, and |q^(k)T k^(k)| <= |q^(k)| |k^(k)| by
Cauchy-Schwarz. At the bound the pair points the key exactly to the query.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study import rotary
from rope_study.decoder import Decoder, attention, check_text, variants
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.one_text import (
    check_index,
    query_and_key_coordinates,
    read_activations,
    token_labels,
)

Array = jax.Array

ADDED = datasets.attributes("what the pair adds to q.k")


def contributions(
    decoder: Decoder,
    params: dict,
    tokens: Sequence[int],
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    pieces: Sequence[str] | None = None,
) -> xarray.Dataset:
    """The logit of one query on one key, cut into rotary pairs.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: ids int[T] of one text, BOS included.
      layer, head: of the queries; with grouped queries several heads share a key head.
      query, key: places in the text, key <= query.
      pieces: labels of the tokens, as tokenizer.pieces(tokens) gives them.

    Returns:
      `contribution` and `bound` [pair]; the attributes `logit`, the sum of the contributions,
      `logit_bound`, that of the bounds, and `scaled`, logit / sqrt(head_dim). It is q.k of the
      layer: what a logit function adds to it (ALiBi) or makes of it (a cap) comes after.
    """
    ids = check_text(decoder.config, tokens)
    query, key = check_index(query, len(ids), "query"), check_index(key, len(ids), "key")
    labels = token_labels(pieces, len(ids))
    source = _source(decoder, params, layer, head)
    if key > query:
        raise UserError(f"key={key} comes after query={query}, which cannot read it", "key")
    layers = read_activations(decoder, params, ids[None], _read_places, query, key)
    q, k = (layers[source.layer][name][0].astype(np.float64) for name in ("q", "k"))
    q, k = q[source.head], k[source.kv_head]
    (q1, q2), (k1, k2) = rotary.pairs(q), rotary.pairs(k)
    contribution, bound = q1 * k1 + q2 * k2, np.hypot(q1, q2) * np.hypot(k1, k2)
    attributes = source.attributes | {"kv_head": source.kv_head, "query": query, "key": key}
    if labels is not None:
        attributes |= {"query_token": str(labels[query]), "key_token": str(labels[key])}
    logit = float(contribution.sum())
    attributes |= {"logit": logit, "logit_bound": float(bound.sum())}
    attributes["scaled"] = float(contribution.sum() * len(q) ** -0.5)
    of_bound = datasets.attributes("2-norms of the pairs multiplied")
    return datasets.number_axes(
        xarray.Dataset(
            {"contribution": ("pair", contribution, ADDED), "bound": ("pair", bound, of_bound)},
            coords=source.coordinates,
            attrs=attributes,
        )
    )


def contribution_map(
    decoder: Decoder,
    params: dict,
    tokens: Sequence[int],
    layer: int,
    head: int,
    *,
    pieces: Sequence[str] | None = None,
) -> xarray.DataArray:
    """What each pair adds to q.k of every query and key: [query, key, pair], for Fig. 7.

    Summed over pairs it is q.k before scaling. NaN where the key comes after the query.
    T x T x H/2 numbers are held. Arguments as of `contributions`; pieces come as the coordinates
    `query_token` and `key_token`.
    """
    ids = check_text(decoder.config, tokens)
    coordinates = query_and_key_coordinates(len(ids), pieces)
    source = _source(decoder, params, layer, head)
    layers = read_activations(decoder, params, ids[None], _read_head, source.head, source.kv_head)
    (q1, q2), (k1, k2) = (rotary.pairs(layers[source.layer][name][0]) for name in ("q", "k"))
    contribution = q1[:, None] * k1 + q2[:, None] * k2  # [T, T, H/2]
    contribution[~np.tri(len(ids), dtype=bool)] = np.nan
    return xarray.DataArray(
        contribution,
        dims=("query", "key", "pair"),
        name="contribution",
        coords=coordinates | source.coordinates | {"pair": range(contribution.shape[-1])},
        attrs=ADDED | source.attributes,
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """A head, its key-value head, and what a dataset says of it."""

    layer: int
    head: int
    kv_head: int
    coordinates: dict[str, tuple]
    attributes: dict[str, Any]


def _source(decoder: Decoder, params: dict, layer: int, head: int) -> _Source:
    config = decoder.config
    layer = check_index(layer, config.layers, "layer")
    head = check_index(head, config.heads, "head")
    spec = datasets.with_trained_frequencies(config, params).layer_specs[layer]
    shapes = config.of_layer(spec)
    frequencies = datasets.inverse_frequencies(spec.rotary, shapes.head_dim)
    return _Source(
        layer,
        head,
        int(attention.key_heads(shapes.heads, shapes.kv_heads)[head]),
        {"inverse_frequency": ("pair", frequencies, datasets.FREQUENCY)},
        {"model": variants.describe(config), "layer": layer, "head": head},
    )


def _read_places(activations: Mapping[str, Any], query: Array, key: Array) -> dict[str, Array]:
    """The query [B, N, H] and the key [B, K, H], after rotation."""
    return {
        "q": jnp.take(activations["q_rotated"], query, axis=1),
        "k": jnp.take(activations["k_rotated"], key, axis=1),
    }


def _read_head(activations: Mapping[str, Any], head: Array, kv_head: Array) -> dict[str, Array]:
    """A head's queries and the keys that it reads [B, T, H], after rotation."""
    return {
        "q": jnp.take(activations["q_rotated"], head, axis=2),
        "k": jnp.take(activations["k_rotated"], kv_head, axis=2),
    }
