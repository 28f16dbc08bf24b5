"""What a decoder may be given: its parameters, ids that it has, BOS, padding on the right.

Looked at on the host, before anything is placed on devices: on them an id outside the table would
quietly become another one. `Decoder.apply` itself checks ids only, and only outside of `jax.jit`.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from rope_study.data import Tokenizer
from rope_study.decoder.config import DecoderConfig, check_ids
from rope_study.decoder.decoder import parameter_tree
from rope_study.errors import UserError


def check_tokens(
    config: DecoderConfig, tokens: Any, weights: Any = None, *, needs_bos: bool = True
) -> None:
    """Refuses texts that the decoder would read as others.

    Args:
      tokens: int[B, T].
      weights: float[B, T], 0 on padding, and on tokens that are read but not counted.
      needs_bos: False for tokens that are no text, such as a peer's random ones.

    Raises:
      UserError: another shape or type, an id outside the vocabulary, padding on the left, or no
        BOS at the beginning for a model that needs it.
    """
    ids, weights = _texts(tokens, weights)
    check_ids(config, ids)
    if _is_padded_left(ids, weights):
        raise UserError(
            "texts are padded on the left: the decoder has no mask for it and would read it as"
            " text; put padding on the right, as encode_batch does",
            "weights",
        )
    if needs_bos:
        check_bos(config, ids)


def each_batch(
    config: DecoderConfig, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`each_pair` of texts that the decoder can read; UserError as `check_tokens`."""
    for tokens, weights in each_pair(batches):
        check_tokens(config, tokens, weights)
        yield tokens.astype(np.int32), weights.astype(np.float32)


def each_pair(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches that a user passes: tokens int[B, T] and weights [B, T] of each.

    Raises:
      UserError: what is no such pair.
    """
    wanted = "a list of pairs (tokens int[B, T], weights f32[B, T]), as encode_batch gives them"
    if not np.iterable(batches):
        raise UserError(f"batches={batches!r} must be {wanted}", "batches")
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            shape = f" {list(np.shape(batch))}" if isinstance(batch, np.ndarray) else ""
            raise UserError(
                f"batches must be {wanted}; one of them is a {type(batch).__name__}{shape}",
                "batches",
            )
        yield _texts(*batch)


def _texts(tokens: Any, weights: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """int[B, T] and weights [B, T], 1 where not given; UserError for other shapes and types."""
    ids = _array(tokens)
    w = np.ones(ids.shape, np.float32) if weights is None else _array(weights)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu" or w.shape != ids.shape:
        beside = "" if weights is None else f" with weights {w.shape}"
        raise UserError(
            f"tokens of shape {ids.shape} and type {ids.dtype}{beside} are no texts: give int[B, T]"
            " and weights [B, T], as encode_batch gives them",
            "tokens",
        )
    if w.dtype.kind not in "biuf" or not (np.isfinite(w) & (w >= 0)).all():
        raise UserError("weights must be finite numbers, and 0 leaves a token out", "weights")
    return ids, w


def check_text(config: DecoderConfig, tokens: Any, least: int = 1) -> np.ndarray:
    """int32[T] of one text.

    Raises:
      UserError: another shape or type, an id outside the vocabulary, fewer than `least` tokens, or
        no BOS at the beginning for a model that needs it.
    """
    ids = _array(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise UserError(
            f"tokens of shape {ids.shape} and type {ids.dtype} are not one text: pass its ids,"
            " int[T], such as a row of encode_batch",
            "tokens",
        )
    if len(ids) < least:
        raise UserError(f"the text has {len(ids)} token(s), and {least} are needed", "tokens")
    check_ids(config, ids)
    check_bos(config, ids[None])
    check_length(config, len(ids))
    return ids.astype(np.int32)


def _array(values: Any) -> np.ndarray:
    """As an array; [0] of objects where rows differ in length."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.empty(0, object)


def _is_padded_left(ids: np.ndarray, weights: np.ndarray) -> bool:
    """Whether rows of [B, T] begin with one id again and again, and that is not counted.

    Not every row that begins uncounted: a question whose answer alone is scored does too. A first
    token alone, in every row, is BOS that a user leaves out.
    """
    uncounted = np.where((weights > 0).any(1), np.argmax(weights > 0, axis=1), 0)
    if (uncounted <= 1).all() and len(set(uncounted.tolist())) == 1:
        return False
    return any(
        count and (row[:count] == row[0]).all() for row, count in zip(ids, uncounted, strict=True)
    )


def check_bos(config: DecoderConfig, ids: np.ndarray) -> None:
    """Refuses texts int[B, T] that do not begin with BOS, for models that need it.

    Without it a released Gemma gives garbage: gemma-7b's LAMBADA perplexity is 5.9e9, with it 3.46.
    """
    if config.bos is not None and (ids[:, 0] != config.bos).any():
        raise UserError(
            f"a text begins with token {int(ids[ids[:, 0] != config.bos][0, 0])}, and this"
            f" model needs BOS, {config.bos}, in front of every text or gives garbage: use"
            " encode_batch of checkpoints.load_tokenizer(path)"
        )


def check_params(config: DecoderConfig, params: Any, more: bool = True) -> None:
    """Refuses parameters of another decoder: an array that is missing or of another shape.

    Args:
      config: of the decoder.
      params: as checkpoints.load gives them, without {"params": ...} around.
      more: whether there may be arrays besides, such as those of another encoding.
    """
    if not isinstance(params, Mapping):
        raise UserError(f"params of type {type(params).__name__} must be a dictionary", "params")

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        flat: dict[str, Any] = flatten_dict(nn.unbox(dict(tree)), sep="/")
        return {name: getattr(array, "shape", ()) for name, array in flat.items()}

    given, expected = shapes(params), shapes(parameter_tree(config))
    for name in sorted(expected if more else expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"params {name!r} is {given.get(name, 'missing')} and the decoder's is"
                f" {expected.get(name, 'not there')}: give the parameters of this decoder",
                "params",
            )


def check_vocabulary(config: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Refuses the tokenizer of another model, by its size.

    Embeddings are padded, and some tokenizers have added tokens that the model has no row for
    (Gemma 3's image token): so fewer rows than tokens without the added, or more than twice.
    """
    rows, tokens = config.vocab_size, tokenizer.vocab_size
    if tokenizer.base_size > rows or 2 * tokens < rows:
        raise UserError(
            f"tokenizer {tokenizer.name!r} has {tokens:,} tokens and the model {rows:,} rows in its"
            " embedding: they are of different models; give the model's own",
            "tokenizer",
        )


def check_length(config: DecoderConfig, length: int) -> None:
    """Warns of texts of more tokens than the decoder was trained on, where that is known.

    What heads do changes there: on a small model of 256 tokens most look semantic at 2,048.
    """
    if length >= 2**31:
        raise UserError(f"{length:,} tokens are more than positions in int32 can count", "tokens")
    if config.at_most_trained(length) < length:
        warnings.warn(
            f"{length:,} tokens are more than the {config.trained_length:,} that the model was"
            " trained on: what it does past them is not what it does within them",
            stacklevel=3,
        )
