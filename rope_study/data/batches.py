"""Batches: a flat stream of tokens in windows, and rows that are a function of (seed, step)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from rope_study.checks import checked
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.errors import UserError, nearest

# What tokens read of other documents in their window: all before them, or nothing.
JOINED, MASKED = "joined", "masked"


@checked
def tokenize(documents: Sequence[str], tokenizer: Tokenizer, progress: bool = False) -> np.ndarray:
    """One flat stream of all documents in order, with a progress bar or not.

    Each begins with BOS; for a model without one each ends with EOS.

    Returns:
      uint16[n] if the tokenizer's vocabulary fits, else uint32[n].

    Raises:
      UserError: the tokenizer has neither.
    """
    nothing = np.empty(0, token_dtype(tokenizer))  # no documents, no tokens
    return np.concatenate([nothing, *tokenize_each(documents, tokenizer, progress)])


def tokenize_each(
    documents: Sequence[str], tokenizer: Tokenizer, progress: bool = False
) -> list[np.ndarray]:
    """`tokenize` document by document."""
    tokenizer.check_separator()
    dtype = token_dtype(tokenizer)
    bar = tqdm(documents, "tokenize", unit=" documents", disable=not progress)
    return [tokenizer.encode_document(document).astype(dtype) for document in bar]


def token_dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    """What the tokens of a tokenizer are kept as."""
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


IDS = ((1, "i"), (1, "u"))  # what a stream of ids is: axes, and kind of numbers
# (first, last) -> f32[last - first]: how much each token of a stream counts in the loss.
Weigh = Callable[[int, int], np.ndarray]


class Windows:
    """Consecutive runs of `length` tokens to predict; what is left is dropped.

    windows[i] is int32[length + 1]: inputs are w[:-1] and targets w[1:]. Each starts with a BOS of
    its own, as a document does, so the targets of all windows are the stream itself. For a model
    without BOS it starts with the token before its targets, which the first window lacks.
    """

    def __init__(
        self, tokens: np.ndarray, length: int, bos: int | None, weigh: Weigh | None = None
    ):
        """Of tokens uint[n] from `tokenize` or a store; UserError for a wrong length."""
        check_integer("length", length)
        array = isinstance(tokens, np.ndarray)
        if not hasattr(tokens, "__len__") or (
            array and (tokens.ndim, tokens.dtype.kind) not in IDS
        ):
            raise UserError("tokens must be one stream of ids, uint[n]", "tokens")
        self._tokens, self._length, self._bos, self._weigh = tokens, length, bos, weigh

    def __len__(self) -> int:
        read = len(self._tokens) - (self._bos is None)
        return max(0, read) // self._length

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start, stop = index * self._length, (index + 1) * self._length
        if self._bos is None:
            return self._tokens[start : stop + 1].astype(np.int32)
        return np.concatenate([[self._bos], self._tokens[start:stop]]).astype(np.int32)

    def weights(self, index: int) -> np.ndarray:
        """f32[length], how much each target of a window counts in the loss."""
        if self._weigh is None:
            return np.ones(self._length, np.float32)
        first = index * self._length + (self._bos is None)
        return self._weigh(first, first + self._length)


class TrainBatches:
    """Shuffled windows without end, in a new order each epoch, by random access.

    Row r of step s depends on (tokens, length, batch_size, seed) alone, not on what was read
    before: to resume is to ask for the next step, on any number of hosts.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        batch_size: int,
        seed: int,
        bos: int | None,
        weigh: Weigh | None = None,
    ):
        """Of tokens uint[n] from `tokenize` or a store.

        Args:
          tokens: the stream; only what a batch needs is read.
          length: tokens to predict in a row.
          batch_size: rows in a batch, over all hosts.
          seed: of the order, below 2^32.
          bos: id that starts every row; None for a model without.
          weigh: how much each token counts in the loss; None where all do.

        Raises:
          UserError: the tokens do not fill one batch, or a number is out of range.
        """
        import grain  # takes seconds, and only training needs it

        check_integer("batch_size", batch_size)
        check_integer("seed", seed, lowest=0)
        windows = Windows(tokens, length, bos, weigh)
        if len(windows) < batch_size:
            raise UserError(
                f"the corpus has {len(tokens)} tokens to train on, one batch needs"
                f" {batch_size * length} ({batch_size} rows of {length}): give more text, or lower"
                " batch_size or length",
                "path",
            )
        # Grain's permutation is of 32 bits, and by random access: nothing grows with the windows.
        check_integer("windows of this length", len(windows))
        self._batch_size, self._windows = batch_size, windows
        self._order: Any = grain.MapDataset.range(len(windows)).seed(seed).shuffle().repeat()

    def rows(self, step: int, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 of a step's batch, int32[stop - start, length + 1]; reads no others.

        Raises:
          UserError: step is negative, or the rows are none or outside the batch.
        """
        return np.stack([self._windows[i] for i in self._numbers(step, start, stop)])

    def weights(self, step: int, start: int, stop: int) -> np.ndarray:
        """How much the targets of those rows count in the loss, f32[stop - start, length]."""
        return np.stack([self._windows.weights(i) for i in self._numbers(step, start, stop)])

    def _numbers(self, step: int, start: int, stop: int) -> list[int]:
        whole = all(isinstance(number, int | np.integer) for number in (step, start, stop))
        if not whole or step < 0 or not 0 <= start < stop <= self._batch_size:
            raise UserError(
                f"rows {start}:{stop} of step {step}: steps count from 0, and rows are at least"
                f" one of 0:{self._batch_size}",
                "batch_size",
            )
        first = int(step) * self._batch_size
        return [int(self._order[first + row]) for row in range(start, stop)]

    def batch(self, step: int) -> np.ndarray:
        """The whole batch of a step, int32[batch_size, length + 1]."""
        return self.rows(step, 0, self._batch_size)


def held_out_batches(
    tokens: np.ndarray,
    length: int,
    batch_size: int,
    bos: int | None,
    max_windows: int | None = None,
    weigh: Weigh | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows in order, once: (int32[batch_size, length + 1], weights float32 of each token).

    At most max_windows of them, evenly spaced over the stream. The last batch is filled up with
    repeated rows of weight 0. The first token of a window is read and not predicted: it weighs 1.

    Raises:
      UserError: not one window fits, or a number is not a positive integer.
    """
    check_integer("batch_size", batch_size)
    windows = Windows(tokens, length, bos, weigh)
    if not len(windows):
        raise UserError(
            f"the held-out text has {len(tokens)} tokens, one window needs {length}: raise"
            " held_out, give more text, or lower length",
            "held_out",
        )
    if max_windows is not None:
        check_integer("max_windows", max_windows)
    window_numbers = evenly_spaced(len(windows), max_windows or 0)

    # Inside, so that the errors above come at the call and not with the first batch.
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(window_numbers), batch_size):
            rows = window_numbers[start : start + batch_size]
            filled = np.resize(rows, batch_size).tolist()
            weights = np.ones((batch_size, length + 1), np.float32)
            weights[:, 1:] = [windows.weights(i) for i in filled]
            weights[len(rows) :] = 0
            yield np.stack([windows[i] for i in filled]), weights

    return batches()


def evenly_spaced(size: int, most: int) -> np.ndarray:
    """int[...], at most so many of the places 0..size-1, as far apart as can be; 0: all."""
    count = min(most, size) if most else size
    return np.arange(count) * size // max(count, 1)


def check_integer(argument: str, value: int, lowest: int = 1) -> None:
    """UserError if the value of an argument is not an integer from `lowest` to 2^32-1."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not lowest <= value < 2**32:
        raise UserError(f"{argument}={value!r} must be an integer, {lowest}..2^32-1", argument)


def check_documents(documents: str) -> None:
    """UserError for a word that is neither JOINED nor MASKED."""
    if documents not in (JOINED, MASKED):
        near = nearest(str(documents), [JOINED, MASKED])
        problem = f"documents={documents!r} is neither {JOINED!r} nor {MASKED!r}.{near}"
        raise UserError(problem, "documents")
