"""Loss by document and by position, of one decoder under several encodings, at several lengths.

E encodings, L lengths, D documents, G groups of positions. A token's position is how many tokens of
its window were read before it: from 1, as BOS is read first.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray
from tqdm import tqdm

from rope_study.checks import checked
from rope_study.data.batches import JOINED, MASKED, check_integer
from rope_study.data.document_windows import (
    Cut,
    Documents,
    WindowBatch,
    cut,
    window_batches,
)
from rope_study.decoder import Decoder, DecoderConfig, check_tokens, variants
from rope_study.errors import UserError
from rope_study.probes.datasets import BY_LENGTH, BY_POSITION
from rope_study.training.evaluate import loss_reader, means_and_errors

GROUPS = 2  # of positions, for each doubling
NATS = "nats/token"


@checked
def evaluate_documents(
    models: Mapping[str, tuple[Decoder, dict]],
    documents: Documents,
    lengths: Sequence[int],
    *,
    across: str = MASKED,
    batch_size: int = 8,
    progress: bool = False,
) -> xarray.Dataset:
    """Every document's loss under each encoding, in windows of each length.

    At every length the same tokens are predicted, once each, so all differences are paired. Errors
    and intervals (95 %, Student's t) are over documents: tokens of one are not independent.

    Args:
      models: by encoding, a decoder and its parameters; differences are from the first.
      documents: of `load_documents`.
      lengths: tokens that a window predicts, after its BOS.
      across: MASKED, a document is read by itself, or JOINED, windows cross documents.
      batch_size: windows of the greatest length at once.
      progress: whether to show a bar.

    Returns:
      By `rotary`, the encoding, and `length`: `loss` and `difference` from the first encoding, in
      nats a token, and `perplexity`, its interval from `_low` to `_high`; by `position` besides, a
      group from `position_first` to it, `position_loss` and `position_difference`; each but the
      perplexity with `_se` and `_interval`, half its width; by `document` (its number in the text)
      `document_loss` and `document_tokens`; and `position_tokens`. Attributes: model, text,
      documents, tokens, context (the greatest length), across, and trained_length where known.

    Raises:
      UserError: nothing to compare, a length or word that is none, two lengths that are one,
        parameters of another decoder, or ids that it does not have.
    """
    _check(models, lengths)
    check_integer("batch_size", batch_size)
    config = next(iter(models.values()))[0].config
    groups = position_groups(config.trained_length or max(lengths), max(lengths))
    windows = {length: cut(documents, length, across) for length in lengths}
    if across == JOINED:
        models = {name: (_joining(decoder), params) for name, (decoder, params) in models.items()}
    readers = [loss_reader(*model) for model in models.values()]  # refuses params before it begins
    each = itertools.product(zip(models.values(), readers, strict=True), windows.items())
    bar = tqdm(each, "evaluate", len(models) * len(lengths), disable=not progress)
    loss_sums = []
    for ((decoder, _), reader), (length, window) in bar:
        batches = window_batches(documents, window, length, batch_size * max(lengths))
        losses = _losses(decoder, reader, documents, batches)
        loss_sums.append(_by_group(documents, losses * documents.weights, window, groups))
    counts = [_by_group(documents, documents.weights, at, groups) for at in windows.values()]
    sums = np.reshape(loss_sums, (len(models), *np.shape(counts)))
    coordinates = {
        "rotary": np.array(list(models), object),
        "length": np.array(lengths),
        "position": groups,
        "position_first": ("position", np.append(0, groups[:-1]) + 1),
        "document": documents.numbers,
    }
    return xarray.Dataset(_variables(sums, np.array(counts)), coordinates).assign_attrs(
        _attributes(config, documents, across, max(lengths))
    )


def _check(models: Mapping[str, tuple[Decoder, dict]], lengths: Sequence[int]) -> None:
    for name, model in models.items():
        if not isinstance(model, tuple) or [*map(type, model)][:1] != [Decoder]:
            raise UserError(f"models[{name!r}] must be (decoder, params)", "models")
    if not models or not lengths or len(set(lengths)) < len(lengths):
        raise UserError(
            f"lengths={list(lengths)} of {len(models)} encoding(s): give one or more of each, and"
            " each length once",
            "lengths",
        )


def _joining(decoder: Decoder) -> Decoder:
    """The decoder, reading all of a window as one text, however it was trained."""
    config = dataclasses.replace(decoder.config, document_start=None, document_end=None)
    return Decoder(config, decoder.layout)


def position_groups(trained: int, longest: int) -> np.ndarray:
    """int[G], the last position of each group, rising to `longest`.

    Groups grow with the position, and none lies on both sides of `trained`.
    """
    most = math.ceil(GROUPS * math.log2(max(longest / trained, 1)))
    least = -math.ceil(GROUPS * math.log2(trained))
    lasts = np.round(trained * 2.0 ** (np.arange(least, most + 1) / GROUPS)).astype(np.int64)
    return np.unique(np.append(lasts[(lasts > 0) & (lasts < longest)], longest))


def _losses(
    decoder: Decoder,
    reader: Callable[[np.ndarray], np.ndarray],
    documents: Documents,
    batches: Iterable[WindowBatch],
) -> np.ndarray:
    """float64[n], the loss of each of the documents' tokens; 0 where it is not predicted."""
    losses = np.zeros(len(documents.tokens))
    for tokens, weights, places in batches:
        check_tokens(decoder.config, tokens, weights)
        predicted = places >= 0
        losses[places[predicted]] = reader(tokens)[predicted]
    return losses


def _by_group(
    documents: Documents, values: np.ndarray, windows: Cut, groups: np.ndarray
) -> np.ndarray:
    """[G, D]: sums over tokens of values[n], by the group of their position and by document."""
    places, positions = windows.places, windows.positions
    cells = np.searchsorted(groups, positions) * len(documents.starts)
    cells += documents.of_token[places]
    shape = len(groups), len(documents.starts)
    return np.bincount(cells, values[places], math.prod(shape)).reshape(shape)


def _variables(sums: np.ndarray, counts: np.ndarray) -> dict[str, tuple]:
    """Of sums [E, L, G, D] and counts [L, G, D]."""
    variables: dict[str, tuple] = {}
    by_document, tokens = sums.sum(axis=2), counts.sum(axis=1)
    for prefix, axes, values, of in (
        ("", BY_LENGTH, by_document, tokens),
        ("position_", BY_POSITION, sums, counts),
    ):
        for name, shown in (("loss", values), ("difference", values - values[:1])):
            of_each = np.broadcast_to(of, shown.shape)
            mean, error, half = means_and_errors(shown, of_each)
            for ending, column in (("", mean), ("_se", error), ("_interval", half)):
                variables[f"{prefix}{name}{ending}"] = (axes, column, {"units": NATS})
    loss, half = (variables[name][1] for name in ("loss", "loss_interval"))
    for name, at in (("", loss), ("_low", loss - half), ("_high", loss + half)):
        variables[f"perplexity{name}"] = BY_LENGTH, np.exp(at), {"units": "1"}
    variables["position_tokens"] = ("length", "position"), counts.sum(axis=2), {"units": "tokens"}
    variables["document_loss"] = (*BY_LENGTH, "document"), by_document / tokens, {"units": NATS}
    variables["document_tokens"] = "document", tokens[0], {"units": "tokens"}
    return variables


def _attributes(
    config: DecoderConfig, documents: Documents, across: str, context: int
) -> dict[str, Any]:
    counted = int(np.count_nonzero(documents.weights))
    trained = {} if config.trained_length is None else {"trained_length": config.trained_length}
    return trained | {
        "model": variants.describe_size(config),
        "text": documents.name, "documents": len(documents.starts), "tokens": counted,
        "context": context, "across": across,
    }  # fmt: skip
