"""Documents cut into windows to evaluate on: every token but a document's first is read once.

n tokens in all, T the length of windows, B windows at once.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rope_study.checks import checked
from rope_study.data.batches import (
    JOINED,
    check_documents,
    check_integer,
    evenly_spaced,
    tokenize_each,
)
from rope_study.data.documents import (
    check_fraction,
    find_files,
    pieces,
    read_documents,
    split,
)
from rope_study.data.store import Side, holds_store, open_store
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.errors import UserError

SHORTEST = 64  # tokens; shorter windows are filled up to as many


@dataclasses.dataclass(frozen=True)
class Documents:
    """Some documents to evaluate on.

    Attributes:
      name: where they came from.
      tokens: uint[n], one after the other, as in a store.
      starts: int[documents], where each begins.
      numbers: int[documents], the place of each in what they were taken from.
      weights: f32[n], how much each token counts; 0 for the first of a document, which is BOS or
        has nothing before it.
      bos: the id that begins every window; None for a model without.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    weights: np.ndarray
    bos: int | None

    @property
    def stops(self) -> np.ndarray:
        """int[documents], where each ends."""
        return np.append(self.starts[1:], len(self.tokens))

    @property
    def of_token(self) -> np.ndarray:
        """int[n], which of the documents each token is of."""
        return np.repeat(np.arange(len(self.starts)), self.stops - self.starts)


@checked
def load_documents(
    path: str,
    tokenizer: Tokenizer,
    most: int = 0,
    held_out: float | None = None,
    progress: bool = False,
) -> Documents:
    """The documents of a text, or the held-out ones of a store.

    Args:
      path: a store, or what `read_documents` takes. A text that is a single document is read in
        pieces, as training reads long ones.
      tokenizer: the model's; of a store the one that made it.
      most: how many documents, evenly spaced; 0: all.
      held_out: of a text, only what a run with this fraction held out is not trained on.
      progress: whether to show a bar.

    Raises:
      UserError: as `read_documents`, `open_store` and `Store.check_tokenizer`; a fraction outside
        (0, 1), or beside a store; or no document has a token that counts.
    """
    tokenizer.check_separator()
    check_path(path, held_out)
    if is_store(path):
        store = open_store(path)
        store.check_tokenizer(tokenizer)
        return take(store.held_out, tokenizer.bos, most, path)
    texts = read_documents(path)
    if held_out is not None:
        _, texts = split(texts, held_out)
    texts = pieces(texts) if len(texts) == 1 else texts
    numbers = evenly_spaced(len(texts), most)
    tokens = tokenize_each([texts[i] for i in numbers], tokenizer, progress)
    starts = np.cumsum([0, *map(len, tokens[:-1])])
    side = Side(np.concatenate(tokens), starts, begun=int(tokenizer.bos is not None))
    documents = take(side, tokenizer.bos, name=path)
    return dataclasses.replace(documents, numbers=numbers[documents.numbers])


def check_path(path: str, held_out: float | None = None) -> None:
    """UserError where `load_documents` has no such text or fraction, before anything is read."""
    if held_out is not None:
        check_fraction("held_out", held_out)
    if is_store(path):
        if held_out is not None:
            raise UserError(
                f"held_out={held_out}, but {path} is a store, of which the held-out side is read:"
                " leave it out",
                "held_out",
            )
    elif path != "python":
        find_files(path)


def is_store(path: str) -> bool:
    """Whether `load_documents` would open a store."""
    return path not in ("", "python") and holds_store(path)


def take(side: Side, bos: int | None, most: int = 0, name: str = "") -> Documents:
    """Documents of one side of a store that have a token which counts, at most so many."""
    starts = side.starts.astype(np.int64)
    lengths = np.diff(starts, append=len(side.tokens))
    prompts = 0 if side.prompts is None else side.prompts.astype(np.int64)
    counting = lengths > np.maximum(prompts + side.begun, 1)
    numbers = np.flatnonzero(counting)
    numbers = numbers[evenly_spaced(len(numbers), most)]
    if not len(numbers):
        raise UserError(f"{name!r} has no document with a token to predict", "data")
    starts, lengths = starts[numbers], lengths[numbers]
    spans = list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))
    tokens = np.concatenate([side.tokens[first:last] for first, last in spans])
    weights = np.concatenate([side.weights(first, last) for first, last in spans])
    begins = np.cumsum(lengths) - lengths
    weights[begins] = 0
    return Documents(name, tokens, begins, numbers, weights, bos)


# --- windows ----------------------------------------------------------------------------------


class Cut(NamedTuple):
    """Windows over documents: the place of the first token each predicts, and how many; int[w]."""

    first: np.ndarray
    count: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """int[...], every token that is predicted, window by window."""
        return np.repeat(self.first, self.count) + _within(self.count)

    @property
    def positions(self) -> np.ndarray:
        """int[...], how many tokens of its window were read before each of them, from 1."""
        return _within(self.count) + 1


def cut(documents: Documents, length: int, across: str) -> Cut:
    """Windows of `length` tokens to predict, the last of a document or of all with what is left.

    Args:
      across: JOINED or MASKED.

    Raises:
      UserError: a length below 1, or another word.
    """
    check_integer("lengths", length)
    check_documents(across)
    starts, stops = documents.starts + 1, documents.stops
    if across == JOINED:
        starts, stops = starts[:1], stops[-1:]
    windows = -(-(stops - starts) // length)
    first = np.repeat(starts, windows) + _within(windows) * length
    return Cut(first, np.minimum(length, np.repeat(stops, windows) - first))


def _within(counts: np.ndarray) -> np.ndarray:
    """0..c-1 for each of the counts, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


class WindowBatch(NamedTuple):
    """Windows to read at once.

    Attributes:
      tokens: int32[B, T + 1], as `held_out_batches` gives them.
      weights: f32[B, T + 1].
      places: int[B, T], which of the documents' tokens each target is; -1 where it only fills up.
    """

    tokens: np.ndarray
    weights: np.ndarray
    places: np.ndarray


def window_batches(
    documents: Documents, windows: Cut, length: int, tokens: int
) -> Iterator[WindowBatch]:
    """The windows in batches of at most so many tokens, or of one window; short ones first.

    Each batch is as long as a power of 2 or `length`, as every shape is compiled; short windows
    beside long ones would be mostly filling.
    """
    widths = [max(SHORTEST, 1 << (count - 1).bit_length()) for count in windows.count.tolist()]
    widths = np.minimum(widths, length)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        rows = min(max(1, tokens // width), len(members))
        for start in range(0, len(members), rows):
            in_batch = members[start : start + rows]
            yield _batch(documents, windows, np.resize(in_batch, rows), len(in_batch), width)


def _batch(
    documents: Documents, windows: Cut, rows: np.ndarray, counted: int, width: int
) -> WindowBatch:
    """Windows `rows`, of which the first `counted` count, filled up to `width` targets each."""
    first, columns = windows.first[rows], np.arange(width)
    places = first[:, None] + columns
    places[columns >= windows.count[rows][:, None]] = -1
    places[counted:] = -1
    fill = documents.bos or 0
    tokens = np.where(places < 0, fill, documents.tokens[places])
    before = documents.tokens[first - 1] if documents.bos is None else np.full(len(rows), fill)
    tokens = np.column_stack([before, tokens]).astype(np.int32)
    weights = np.where(places < 0, 0, documents.weights[places])
    weights = np.insert(weights, 0, np.arange(len(rows)) < counted, axis=1)
    return WindowBatch(tokens, weights.astype(np.float32), places)
