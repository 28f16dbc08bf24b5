"""What each rotary pair adds to one logit, beside the most it could add.

Tables 3 to 5 and Fig. 7 of Barbero et al. (ICLR 2025): a logit before scaling is
q^T k = sum_k q^(k)T k^(k) over rotated pairs, and |q^(k)T k^(k)| <= |q^(k)| |k^(k)| by
Cauchy-Schwarz. At the bound the pair points the key exactly to the query.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study import rotary
from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.one_text import capture, index, labels, one_text, query_and_key
from rope_study.probes.run import describe

Array = jax.Array


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
    tokens = one_text(decoder, tokens)
    query, key = index(query, len(tokens), "query"), index(key, len(tokens), "key")
    names = labels(pieces, len(tokens))
    place = _place(decoder, layer, head)
    if key > query:
        raise UserError(f"key={key} comes after query={query}, which cannot read it")
    found = capture(decoder, params, tokens[None], _read, query, key)[place.layer]
    q, k = (found[name][0].astype(np.float64) for name in ("q", "k"))
    q, k = q[place.head], k[place.kv_head]
    (q1, q2), (k1, k2) = rotary.pairs(q), rotary.pairs(k)
    contribution, bound = q1 * k1 + q2 * k2, np.hypot(q1, q2) * np.hypot(k1, k2)
    tokens_named = {} if names is None else {"query_token": names[query], "key_token": names[key]}
    return datasets.numbered(
        xarray.Dataset(
            {
                "contribution": (
                    "pair",
                    contribution,
                    datasets.about("what the pair adds to q.k"),
                ),
                "bound": ("pair", bound, datasets.about("2-norms of the pairs multiplied")),
            },
            coords=place.coordinates,
            attrs=place.attributes
            | {"kv_head": place.kv_head, "query": query, "key": key}
            | {name: str(token) for name, token in tokens_named.items()}
            | {
                "logit": float(contribution.sum()),
                "logit_bound": float(bound.sum()),
                "scaled": float(contribution.sum() * len(q) ** -0.5),
            },
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

    Summed over frequencies it is q.k before scaling. NaN where the key comes after the query.
    T x T x H/2 numbers are held. Arguments as of `contributions`; pieces come as the coordinates
    `query_token` and `key_token`.
    """
    tokens = one_text(decoder, tokens)
    coordinates = query_and_key(len(tokens), pieces)
    place = _place(decoder, layer, head)
    found = capture(decoder, params, tokens[None], _read_head, place.head, place.kv_head)
    q, k = (rotary.pairs(found[place.layer][name][0]) for name in ("q", "k"))  # 2 x [T, H/2]
    added = sum(a[:, None] * b[None] for a, b in zip(q, k, strict=True))
    added[~np.tri(len(tokens), dtype=bool)] = np.nan
    return xarray.DataArray(
        added,
        dims=("query", "key", "pair"),
        name="contribution",
        coords=coordinates | place.coordinates | {"pair": range(added.shape[-1])},
        attrs=datasets.about("what the pair adds to q.k") | place.attributes,
    )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A head, its key-value head, and what a dataset says of it."""

    layer: int
    head: int
    kv_head: int
    coordinates: dict
    attributes: dict


def _place(decoder: Decoder, layer: int, head: int) -> _Place:
    config = decoder.config
    layer, head = index(layer, config.layers, "layer"), index(head, config.heads, "head")
    spec = config.layer_specs[layer]
    own = config.of_layer(spec)
    turns = datasets.inverse_frequencies(spec.rotary, own.head_dim)
    about = datasets.about("turn a token; 0: not rotated", "rad/token")
    return _Place(
        layer,
        head,
        head // (config.heads // own.kv_heads),
        {"inverse_frequency": ("pair", turns, about)},
        {"model": describe(config), "layer": layer, "head": head},
    )


def _read(activations: Mapping[str, Array], query: Array, key: Array) -> dict[str, Array]:
    """The query [B, N, H] and the key [B, K, H], after rotation."""
    return {
        "q": jnp.take(activations["q_rotated"], query, axis=1),
        "k": jnp.take(activations["k_rotated"], key, axis=1),
    }


def _read_head(activations: Mapping[str, Array], head: Array, kv_head: Array) -> dict[str, Array]:
    """A head's queries and the keys that it reads [B, T, H], after rotation."""
    return {
        "q": jnp.take(activations["q_rotated"], head, axis=2),
        "k": jnp.take(activations["k_rotated"], kv_head, axis=2),
    }
