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

from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.probes import datasets
from rope_study.probes.one_text import fill_rows, labels, one_text
from rope_study.probes.run import in_f32

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
    tokens = one_text(decoder, tokens)
    lengths = np.asarray(lengths)
    integers = lengths.ndim == 1 and len(lengths) and np.issubdtype(lengths.dtype, np.integer)
    if not integers or lengths.min() < 1 or lengths.max() > len(tokens):
        raise UserError(f"lengths={lengths} must be whole numbers from 1 to {len(tokens)}")
    texts = np.full((len(lengths), int(lengths.max()) + 1), tokens[0])
    for text, n in zip(texts, lengths, strict=True):
        text[: n + 1] = [*tokens[:n], tokens[n - 1]]
    ends = _last_two(in_f32(decoder), params, texts, lengths)
    short, long = ends.astype(np.float64).transpose(1, 0, 2)
    apart = np.abs(long - short)
    relative = np.linalg.norm(apart, axis=-1) / np.linalg.norm(short, axis=-1)
    in_bf16 = ends.astype(ml_dtypes.bfloat16)
    about = lambda what: datasets.about(f"{what} of v_n(x) - v_n+1(x, last token repeated)")  # noqa: E731
    return xarray.Dataset(
        {
            "l1": ("length", apart.sum(-1), about("1-norm")),
            "l2": ("length", np.linalg.norm(apart, axis=-1), about("2-norm")),
            "largest": ("length", apart.max(-1), about("largest dimension")),
            "relative": ("length", relative, datasets.about("2-norm over that of v_n(x)")),
            "equal_in_bf16": (
                "length",
                (in_bf16[:, 0] == in_bf16[:, 1]).mean(-1),
                datasets.about("share of dimensions that are the same in bf16"),
            ),
        },
        coords={"length": ("length", lengths, {"units": "token"})},
    )


def _last_two(decoder: Decoder, params: dict, texts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """f32[R, 2, D]: features at places n - 1 and n of R texts int[R, T], a few at a time."""
    size = len(fill_rows(min(ROWS, len(texts)), decoder.layout.shards("batch")))
    rows = fill_rows(len(texts), size)
    found = []
    for some in rows.reshape(-1, size):
        at = jnp.asarray(lengths[some, None] + np.arange(-1, 1))
        found.append(_at(decoder, params, decoder.layout.place(texts[some]), at))
    return np.concatenate(found)[: len(texts)]


@functools.partial(jax.jit, static_argnums=0)
def _at(decoder: Decoder, params: dict, tokens: Array, at: Array) -> Array:
    """Features f32[B, n, D] at places int[B, n]."""
    x, _ = decoder.apply({"params": params}, tokens, method="features")
    found = jnp.take_along_axis(x, at[..., None], axis=1)
    return decoder.layout.constrain(found, None, None, None)


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
    tokens = one_text(decoder, tokens)
    names = labels(pieces, len(tokens))
    if decoder.config.per_layer_dim:
        raise UserError(
            "token_influence follows the embedding only, and every layer of this decoder reads"
            " the tokens anew"
        )
    probed = in_f32(decoder)
    norms = np.sqrt(np.asarray(_squares(probed, params, jnp.asarray(tokens)), np.float64))
    coordinates = {} if names is None else {"token": ("position", names)}
    return xarray.DataArray(
        norms,
        dims="position",
        name="influence",
        coords={"position": ("position", np.arange(len(tokens)), {"units": "token"})} | coordinates,
        attrs=datasets.about("Frobenius norm of the gradient of the last features"),
    )


@functools.partial(jax.jit, static_argnums=0)
def _squares(decoder: Decoder, params: dict, tokens: Array) -> Array:
    """f32[T]: squared gradients of all dimensions of the last features, by input position."""
    c, T = decoder.config, len(tokens)
    of_places = Decoder(dataclasses.replace(c, vocab_size=T), decoder.layout)
    copies = decoder.layout.shards("batch")  # every device runs the same text

    def last(embedded: Array) -> Array:
        # A table with one row a place: its gradient is that of each place's own embedding.
        tables = {name: embedded for name in ("embedding", "unembedding") if name in params}
        places = jnp.broadcast_to(jnp.arange(T), (copies, T))
        x, _ = of_places.apply({"params": params | tables}, places, method="features")
        return x[0, -1]

    features, backward = jax.vjp(last, params["embedding"][tokens].astype(jnp.float32))
    gradient = lambda direction: jnp.sum(jnp.square(backward(direction)[0]), axis=-1)  # noqa: E731
    squares = jnp.sum(jax.lax.map(gradient, jnp.eye(len(features))), axis=0)
    return squares / (c.d_model if c.scale_embedding else 1)
