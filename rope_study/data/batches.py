"""Batches: a flat stream of tokens in windows, and rows that are a function of (seed, step)."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from rope_study.data.tokenizers import Tokenizer
from rope_study.errors import UserError


def tokenize(documents: list[str], tokenizer: Tokenizer, progress: bool = False) -> np.ndarray:
    """One flat stream [n] of all documents, each after a BOS.

    Args:
      documents: texts, in the order of the stream.
      tokenizer: its vocabulary decides between uint16 and uint32.
      progress: show a bar on stderr.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    bos = np.array([tokenizer.bos], dtype)
    parts = [np.empty(0, dtype)]  # no documents, no tokens
    for document in tqdm(documents, "tokenize", unit=" documents", disable=not progress):
        parts += [bos, tokenizer.encode(document).astype(dtype)]
    return np.concatenate(parts)


class Windows:
    """Consecutive runs of the stream, each after a BOS of its own; what is left over is dropped.

    windows[i] is int32[length + 1]: inputs are w[:-1], targets w[1:], so the targets of all
    windows are the stream itself, and every window starts as a document does.

    Args:
      tokens: uint[n] from `tokenize`.
      length: tokens to predict in a window.
      bos: id that starts every window.

    Raises:
      UserError: length is not a positive integer.
    """

    def __init__(self, tokens: np.ndarray, length: int, bos: int):
        _check_count(length, "config.data.length")
        self._tokens, self._length, self._bos = tokens, length, bos

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        window = np.empty(self._length + 1, np.int32)
        window[0] = self._bos
        window[1:] = self._tokens[i * self._length : (i + 1) * self._length]
        return window


class TrainBatches:
    """Shuffled windows without end, in a new order each epoch, by random access.

    Row r of step s is always the same for one (tokens, length, batch_size, seed), whatever was
    read before: to resume is to ask for the next step, from any number of hosts.

    Args:
      tokens: uint[n] from `tokenize`.
      length: tokens to predict in a row.
      batch_size: rows in a batch, over all hosts.
      seed: of the order, 0..2^32-1.
      bos: id that starts every row.

    Raises:
      UserError: the tokens do not fill one batch, or a number is out of range.
    """

    def __init__(self, tokens: np.ndarray, length: int, batch_size: int, seed: int, bos: int):
        import grain  # takes seconds, and only training needs it

        _check_count(batch_size, "config.data.batch_size")
        _check_seed(seed)
        windows = Windows(tokens, length, bos)
        if len(windows) < batch_size:
            raise UserError(
                f"the corpus has {len(tokens)} tokens to train on, one batch needs"
                f" {batch_size * length} ({batch_size} rows of {length}): give more text in"
                " config.data.path, or lower config.data.batch_size or config.data.length"
            )
        self.batch_size = batch_size
        self.windows_per_epoch = len(windows)
        self._dataset = grain.MapDataset.source(windows).seed(seed).shuffle().repeat()

    def rows(self, step: int, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 of a step's batch, int32[stop - start, length + 1]; reads no others.

        Raises:
          UserError: step is negative, or the rows are none or outside the batch.
        """
        if step < 0 or not 0 <= start < stop <= self.batch_size:
            raise UserError(
                f"rows {start}:{stop} of step {step}: steps count from 0 and rows lie in"
                f" 0:{self.batch_size}, at least one; set config.data.batch_size"
            )
        first = int(step) * self.batch_size
        return np.stack([self._dataset[first + row] for row in range(start, stop)])

    def batch(self, step: int) -> np.ndarray:
        """The whole batch of a step, int32[batch_size, length + 1]."""
        return self.rows(step, 0, self.batch_size)


def held_out_batches(
    tokens: np.ndarray, length: int, batch_size: int, bos: int, max_windows: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows in order, once, as (int32[batch_size, length + 1], weights float32[batch_size]).

    The last batch is filled up with repeated rows of weight 0.

    Args:
      tokens: uint[n] from `tokenize`.
      length: tokens to predict in a window.
      batch_size: rows in a batch.
      bos: id that starts every window.
      max_windows: take at most this many, evenly spaced over the stream.

    Raises:
      UserError: not one window fits, or a number is not a positive integer.
    """
    _check_count(batch_size, "config.data.batch_size")
    windows = Windows(tokens, length, bos)
    if max_windows is not None:
        _check_count(max_windows, "max_windows")
    if not len(windows):
        raise UserError(
            f"the held-out text has {len(tokens)} tokens, one window needs {length}: raise"
            " config.data.held_out, give more text in config.data.path, or lower config.data.length"
        )
    count = min(len(windows), max_windows or len(windows))
    chosen = np.arange(count) * len(windows) // count
    # A generator of its own, so that the errors above come at the call and not at the first batch.
    return _padded_batches(windows, chosen, batch_size)


def _padded_batches(
    windows: Windows, chosen: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(chosen), batch_size):
        rows = chosen[start : start + batch_size]
        weights = (np.arange(batch_size) < len(rows)).astype(np.float32)
        # np.resize repeats the rows from the first one on.
        yield np.stack([windows[i] for i in np.resize(rows, batch_size)]), weights


def _check_count(value: int, setting: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{setting}={value!r} must be a positive integer; set {setting}")


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed!r} must be an integer in 0..2^32-1; set config.seed")
