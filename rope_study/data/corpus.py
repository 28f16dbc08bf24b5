"""A corpus ready for training: split, tokenized, and cut into batches."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from rope_study.data import batches
from rope_study.data.documents import check_fraction, fingerprint, read_documents, split
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.load import load_tokenizer


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which text a run reads, and how it is cut.

    Attributes:
      path: what `read_documents` takes: "python", a file, a folder or a glob.
      tokenizer: what `load_tokenizer` takes: "bytes", or a path.
      held_out: the fraction of documents kept for evaluation, in (0, 1).
      length: tokens to predict in a row.
      batch_size: rows in a batch, over all devices.

    Raises:
      UserError: a number is out of range.
    """

    path: str
    tokenizer: str
    held_out: float
    length: int
    batch_size: int

    def __post_init__(self):
        check_fraction("held_out", self.held_out)
        # With one token a row there is nothing to attend to but BOS.
        batches.check_integer("length", self.length, lowest=2)
        batches.check_integer("batch_size", self.batch_size)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Both splits of a text as flat tokens, and how they are cut.

    Attributes:
      name: where the text came from.
      fingerprint: of the documents on either side, and of nothing else: see `documents`.
      tokenizer: what made the tokens.
      train, held_out: flat token streams, uint16[n] or uint32[n], each document after BOS or
        before EOS.
      length: tokens to predict in a row.
      batch_size: rows in a batch, over all devices.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    length: int
    batch_size: int

    def train_batches(self, seed: int) -> batches.TrainBatches:
        """A batch for every step, in the order that the seed gives."""
        return batches.TrainBatches(
            self.train, self.length, self.batch_size, seed, self.tokenizer.bos
        )

    def held_out_batches(self, max_windows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(windows int32[B, T + 1], weights f32[B]); 0 windows means all."""
        return batches.held_out_batches(
            self.held_out, self.length, self.batch_size, self.tokenizer.bos, max_windows or None
        )


def load_corpus(settings: DataSettings) -> Corpus:
    """The corpus that the settings name.

    Raises:
      UserError: the text cannot be read, or is shorter than one batch; the tokenizer cannot be
        loaded, or has neither BOS nor EOS.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    tokenizer.check_separator()  # before a large text is read
    train, held_out = split(read_documents(settings.path), settings.held_out)
    corpus = Corpus(
        name=settings.path,
        fingerprint=fingerprint(train, held_out),
        tokenizer=tokenizer,
        train=batches.tokenize(train, tokenizer, progress=True),
        held_out=batches.tokenize(held_out, tokenizer),
        length=settings.length,
        batch_size=settings.batch_size,
    )
    # Both raise where the text is too short, before anything is written.
    corpus.train_batches(seed=0)
    corpus.held_out_batches(1)
    return corpus
