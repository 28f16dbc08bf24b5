"""The attention of one head on one text, as in Figs. 5 to 7 of Barbero et al. (ICLR 2025)."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import xarray

from rope_study.decoder import Decoder
from rope_study.probes import axes
from rope_study.probes.capture import capture, index, labels, one_text

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
    """Attention weights [query, key], each row with sum 1, and 0 on keys after the query.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: ids int[T] of one text, BOS included. T x T weights of every layer are held.
      layer, head: which.
      pieces: labels of the tokens, as tokenizer.pieces(tokens) gives them; they come as the
        coordinates `query_token` and `key_token`.
    """
    tokens = one_text(decoder, tokens)
    layer = index(layer, decoder.config.layers, "layer")
    head = index(head, decoder.config.heads, "head")
    names = labels(pieces, len(tokens))
    weights = capture(decoder, params, tokens[None], _read, head)[layer][0]
    of_tokens = {} if names is None else {f"{a}_token": (a, names) for a in ("query", "key")}
    places = {axis: (axis, range(len(tokens)), {"units": "token"}) for axis in ("query", "key")}
    return xarray.DataArray(
        weights,
        dims=("query", "key"),
        name="attention",
        coords=places | of_tokens,
        attrs=axes.about(f"attention of layer {layer}, head {head}")
        | {"layer": layer, "head": head},
    )


def _read(activations: Mapping[str, Array], head: Array) -> Array:
    """f32[B, T, S], put together from blocks of queries."""
    B, T = activations["tokens"].shape

    def reduce(weights: Array, queries: Array) -> Array:
        rows = jnp.take(weights, head, axis=1)
        return jnp.zeros((B, T, rows.shape[-1])).at[:, queries].set(rows)

    return activations["attention"](reduce)
