"""Representational collapse, and how much each token still moves the last one.

Barbero et al., "Transformers need glasses!" (2406.04267). Thm. 4.2: the last representation of a
text and of the same text with its last token repeated come together as texts grow, and in bf16
they may become one. Thm. 5.1 (over-squashing): what the last representation y_n knows of a token
is bounded by its gradient with respect to that token's embedding.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import xarray

from rope_study.checks import check
from rope_study.decoder import Decoder, DecoderConfig, check_text
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.one_text import token_labels
from rope_study.probes.run import in_f32
from rope_study.sharding import Layout

Array = jax.Array

ROWS = 8  # texts that run together


def representational_collapse(
    decoder: Decoder, params: dict, tokens: Sequence[int], lengths: Sequence[int]
) -> xarray.Dataset:
    """v_n(x) - v_{n+1}(x with its last token repeated), after the final norm, by length n.

    A causal decoder gives v_n(x) and v_{n+1} of the longer text in one run.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: ids int[T] of one text, BOS included; x is its first n tokens.
      lengths: the n, from 1 to T.

    Returns:
      By `length`: `l1`, `l2` and `largest` of the difference, `relative` = l2 over the 2-norm of
      v_n(x), and `equal_in_bf16`, the share of dimensions that bf16 cannot tell apart.
    """
    ids = check_text(decoder.config, tokens)
    check("lengths", lengths, Sequence[int])
    counts = np.asarray(lengths)
    if not len(counts) or counts.min() < 1 or counts.max() > len(ids):
        raise UserError(f"lengths={lengths} must be whole numbers from 1 to {len(ids)}", "lengths")
    texts = np.full((len(counts), int(counts.max()) + 1), ids[0])
    for text, n in zip(texts, counts, strict=True):
        text[: n + 1] = [*ids[:n], ids[n - 1]]
    ends = _last_two(decoder, params, texts, counts)
    short, long = ends.astype(np.float64).transpose(1, 0, 2)
    difference = np.abs(long - short)
    l2 = np.linalg.norm(difference, axis=-1)
    in_bf16 = ends.astype(ml_dtypes.bfloat16)
    equal_in_bf16 = (in_bf16[:, 0] == in_bf16[:, 1]).mean(-1)

    def by_length(values: np.ndarray, long_name: str) -> tuple:
        return "length", values, datasets.attributes(long_name)

    what = "of v_n(x) - v_n+1(x, last token repeated)"
    return xarray.Dataset(
        {
            "l1": by_length(difference.sum(-1), f"1-norm {what}"),
            "l2": by_length(l2, f"2-norm {what}"),
            "largest": by_length(difference.max(-1), f"largest dimension {what}"),
            "relative": by_length(
                l2 / np.linalg.norm(short, axis=-1), "2-norm over that of v_n(x)"
            ),
            "equal_in_bf16": by_length(
                equal_in_bf16, "share of dimensions that are the same in bf16"
            ),
        },
        coords={"length": ("length", counts, {"units": "token"})},
    )


def _last_two(decoder: Decoder, params: dict, texts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """f32[R, 2, D]: features at places n - 1 and n of R texts int[R, T], a few at a time."""
    probed, layout = in_f32(decoder, params)
    batch = len(layout.fill(min(ROWS, len(texts))))
    # All batches have one shape, which compiles once: the first texts again at the end.
    batches = np.resize(np.arange(len(texts)), (-(-len(texts) // batch), batch))
    features = []
    for rows in batches:
        places = jnp.asarray(lengths[rows, None] + np.arange(-1, 1))
        tokens = layout.place(layout.fill_tokens(texts[rows]))
        features.append(_features_at(probed.config, layout, params, tokens, places))
    return np.concatenate(features)[: len(texts)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features_at(
    config: DecoderConfig, layout: Layout, params: dict, tokens: Array, places: Array
) -> Array:
    """Features f32[B, n, D] at places int[B, n]."""
    x, _ = Decoder(config, layout).apply({"params": params}, tokens, method="features")
    return layout.constrain(jnp.take_along_axis(x, places[..., None], axis=1), None, None, None)


# --- over-squashing ---------------------------------------------------------------------------


def token_influence(
    decoder: Decoder,
    params: dict,
    tokens: Sequence[int],
    *,
    pieces: Sequence[str] | None = None,
) -> xarray.DataArray:
    """Frobenius norm of dy_n / dv_i by position i: y_n after the final norm, v_i the embedding.

    v_i is what enters the first layer, after Gemma's scale. Exact: one backward pass for each of
    the D dimensions of y_n.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: ids int[T] of one text, BOS included.
      pieces: labels of the tokens, as tokenizer.pieces(tokens) gives them.

    Raises:
      UserError: a decoder whose layers read the tokens anew (Gemma 4), past the embedding.
    """
    ids = check_text(decoder.config, tokens)
    labels = token_labels(pieces, len(ids))
    if decoder.config.per_layer_dim:
        raise UserError(
            "token_influence follows the embedding only, and every layer of this decoder reads"
            " the tokens anew"
        )
    probed, layout = in_f32(decoder, params)
    squares = _squares(probed.config, layout, params, jnp.asarray(ids))
    coordinates: dict[str, tuple] = {
        "position": ("position", np.arange(len(ids)), {"units": "token"})
    }
    if labels is not None:
        coordinates["token"] = ("position", labels)
    return xarray.DataArray(
        np.sqrt(np.asarray(squares, np.float64)),
        dims="position",
        name="influence",
        coords=coordinates,
        attrs=datasets.attributes("Frobenius norm of the gradient of the last features"),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _squares(config: DecoderConfig, layout: Layout, params: dict, tokens: Array) -> Array:
    """f32[T]: squared gradients of all dimensions of the last features, by input position."""
    T = len(tokens)
    of_places = Decoder(dataclasses.replace(config, vocab_size=T), layout)
    copies = layout.shards("batch")  # every device runs the same text

    def last(embedded: Array) -> Array:
        # A table with one row a place: its gradient is that of each place's own embedding.
        tables = {name: embedded for name in ("embedding", "unembedding") if name in params}
        places = jnp.broadcast_to(jnp.arange(T), (copies, T))
        x, _ = of_places.apply({"params": params | tables}, places, method="features")
        return x[0, -1]

    features, backward = jax.vjp(last, params["embedding"][tokens].astype(jnp.float32))

    def squared_gradient(direction: Array) -> Array:
        return jnp.sum(jnp.square(backward(direction)[0]), axis=-1)

    squares = jnp.sum(jax.lax.map(squared_gradient, jnp.eye(len(features))), axis=0)
    return squares / (config.d_model if config.scale_embedding else 1)
