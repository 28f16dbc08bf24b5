"""A corpus ready for training: split, tokenized, and cut into batches."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from rope_study.data import batches, documents
from rope_study.data.tokenizers import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What a corpus is made of and how it is cut."""

    path: str
    tokenizer: str
    held_out: float
    length: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Both splits of a text as flat tokens, and how they are cut.

    Attributes:
      name: where the text came from.
      fingerprint: hash of the text and of its split.
      tokenizer: what made the tokens.
      train, held_out: flat token streams, every document begun by BOS.
      length, batch_size: of the settings.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    length: int
    batch_size: int

    def train_batches(self, seed: int) -> batches.TrainBatches:
        """A batch for every step."""
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
        loaded, or has no BOS id.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    tokenizer.required_bos()  # before a large text is read
    texts = documents.read_documents(settings.path)
    train, held_out = documents.split(texts, settings.held_out)
    corpus = Corpus(
        settings.path,
        documents.fingerprint(texts),
        tokenizer,
        batches.tokenize(train, tokenizer, progress=True),
        batches.tokenize(held_out, tokenizer),
        settings.length,
        settings.batch_size,
    )
    # Both raise where the text is too short, before anything is written.
    corpus.train_batches(seed=0)
    corpus.held_out_batches(1)
    return corpus
