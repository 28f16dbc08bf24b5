"""What each rotary pair adds to one logit, beside the most it could add.

Tables 3 to 5 and Fig. 7 of Barbero et al. (ICLR 2025): a logit before scaling is
q^T k = sum_k q^(k)T k^(k) over rotated pairs, and |q^(k)T k^(k)| <= |q^(k)| |k^(k)| by
Cauchy-Schwarz. At the bound the pair points the key exactly to the query.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from rope_study import rotary
from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.probes import axes
from rope_study.probes.capture import capture, index, labels, one_text

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
      `contribution` and `bound` [frequency]; the attributes `logit`, the sum of the contributions,
      `logit_bound`, that of the bounds, and `scaled`, logit / sqrt(head_dim). It is q.k of the
      layer: what a logit function adds to it (ALiBi) or makes of it (a cap) comes after.
    """
    tokens, config = one_text(decoder, tokens), decoder.config
    layer, head = index(layer, config.layers, "layer"), index(head, config.heads, "head")
    query, key = index(query, len(tokens), "query"), index(key, len(tokens), "key")
    names = labels(pieces, len(tokens))
    spec = config.layer_specs[layer]
    own = config.of_layer(spec)
    if key > query:
        raise UserError(f"key={key} comes after query={query}, which cannot read it")
    kv_head = head // (config.heads // own.kv_heads)
    found = capture(decoder, params, tokens[None], _read, query, key)[layer]
    q, k = found["q"][0, head].astype(np.float64), found["k"][0, kv_head].astype(np.float64)
    (q1, q2), (k1, k2) = rotary.pairs(q), rotary.pairs(k)
    contribution, bound = q1 * k1 + q2 * k2, np.hypot(q1, q2) * np.hypot(k1, k2)
    turns = axes.inverse_frequencies(spec.rotary, own.head_dim)
    dataset = xarray.Dataset(
        {
            "contribution": ("frequency", contribution, axes.about("what the pair adds to q.k")),
            "bound": ("frequency", bound, axes.about("2-norms of the pairs multiplied")),
        },
        coords={
            "inverse_frequency": (
                "frequency",
                turns,
                axes.about("turn a token; 0: not rotated", "rad/token"),
            )
        },
        attrs={"layer": layer, "head": head, "kv_head": kv_head, "query": query, "key": key}
        | (
            {}
            if names is None
            else {"query_token": str(names[query]), "key_token": str(names[key])}
        )
        | {
            "logit": float(contribution.sum()),
            "logit_bound": float(bound.sum()),
            "scaled": float(contribution.sum() * own.head_dim**-0.5),
        },
    )
    return axes.numbered(dataset)


def _read(activations: Mapping[str, Array], query: Array, key: Array) -> dict[str, Array]:
    """The query [B, N, H] and the key [B, K, H], after rotation."""
    return {
        "q": jnp.take(activations["q_rotated"], query, axis=1),
        "k": jnp.take(activations["k_rotated"], key, axis=1),
    }
