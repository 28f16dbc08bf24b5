"""What a decoder may be given: ids that it has, BOS where it needs it, padding on the right.

Looked at on the host, before anything is placed on devices: on them an id outside the table would
quietly become another one. `Decoder.apply` is the user's own program and checks nothing.
"""

import warnings
from typing import Any

import numpy as np

from rope_study.data import Tokenizer
from rope_study.decoder.config import DecoderConfig
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
    ids, rows = np.asarray(tokens), np.asarray(weights if weights is not None else tokens)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or rows.shape != ids.shape:
        beside = "" if weights is None else f" with weights {rows.shape}"
        raise UserError(
            f"tokens of shape {ids.shape} and type {ids.dtype}{beside} are no texts: give int[B, T]"
            " and weights [B, T], as encode_batch gives them",
            "tokens",
        )
    check_ids(config, ids)
    if weights is not None and _is_padded_left(ids, rows):
        raise UserError(
            "texts are padded on the left: the decoder has no mask for it and would read it as"
            " text; put padding on the right, as encode_batch does",
            "weights",
        )
    if needs_bos and ids.size:
        check_bos(config, ids)


def _is_padded_left(ids: np.ndarray, weights: np.ndarray) -> bool:
    """Whether rows of [B, T] begin with one id again and again, and that is not counted.

    A first token alone, in every row, is BOS that a user leaves out.
    """
    uncounted = np.where((weights > 0).any(1), np.argmax(weights > 0, axis=1), 0)
    if (uncounted <= 1).all() and len(set(uncounted.tolist())) == 1:
        return False
    return any(
        count and (row[:count] == row[0]).all() for row, count in zip(ids, uncounted, strict=True)
    )


def check_ids(config: DecoderConfig, ids: np.ndarray) -> None:
    """Refuses ids int[...] that have no row in the embedding."""
    rows = config.vocab_size
    if config.per_layer_dim:
        rows = min(rows, config.per_layer_vocab_size)
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        raise UserError(
            f"the text has ids from {ids.min()} to {ids.max()}, not 0..{rows - 1}, which the model"
            " has: is the tokenizer another model's, or padding an id of its own?",
            "tokens",
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
    if config.at_most_trained(length) < length:
        warnings.warn(
            f"{length:,} tokens are more than the {config.trained_length:,} that the model was"
            " trained on: what it does past them is not what it does within them",
            stacklevel=3,
        )
