"""A corpus ready for training: a store that was prepared, or texts made into one at first use."""

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs

from rope_study.checks import check_fields
from rope_study.data import batches, documents, store
from rope_study.data.documents import (
    check_fraction,
    digest,
    find_files,
    fingerprint,
    read_documents,
    split,
)
from rope_study.data.text_files import ending
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.load import load_tokenizer
from rope_study.errors import UserError
from rope_study.files import atomic, explained


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which text a run reads, and how it is cut.

    Attributes:
      path: a store that `prepare` made, or what `read_documents` takes: "python", a file, a folder
        or a glob.
      tokenizer: what `load_tokenizer` takes: "bytes", or a path; a store is one, of its own.
      held_out: the fraction of documents kept for evaluation, in (0, 1).
      length: tokens to predict in a row.
      batch_size: rows in a batch, over all devices.
      documents: "joined", rows are read as one text, or "masked", nothing reads another document.

    Raises:
      UserError: a number is out of range, or another word.
    """

    path: str
    tokenizer: str
    held_out: float
    length: int
    batch_size: int
    documents: str = batches.JOINED

    def __post_init__(self):
        check_fields(self)
        check_fraction("held_out", self.held_out)
        # With one token a row there is nothing to attend to but BOS.
        batches.check_integer("length", self.length, lowest=2)
        batches.check_integer("batch_size", self.batch_size)
        batches.check_documents(self.documents)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Both splits of a text as flat tokens, and how they are cut.

    Attributes:
      name: where the text came from.
      fingerprint: of the documents on either side, and of nothing else: see `documents`.
      tokenizer: what made the tokens.
      train, held_out: flat token streams, uint16[n] or uint32[n], each document after BOS or
        before EOS; of a store they are memory-mapped.
      length: tokens to predict in a row.
      batch_size: rows in a batch, over all devices.
      weigh_train, weigh_held_out: how much tokens count in the loss; None where all do.
    """

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    length: int
    batch_size: int
    weigh_train: batches.Weigh | None = None
    weigh_held_out: batches.Weigh | None = None

    def train_batches(self, seed: int) -> batches.TrainBatches:
        """A batch for every step, in the order that the seed gives."""
        return batches.TrainBatches(
            self.train, self.length, self.batch_size, seed, self.tokenizer.bos, self.weigh_train
        )

    def held_out_batches(
        self, max_windows: int, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(windows, weights) [B, T + 1], all of weight 1; 0 windows: all; B is as in training."""
        return self._held_out(max_windows, batch_size, None)

    def held_out_texts(
        self, max_windows: int, batch_size: int
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
        """The same as probes read it: (tokens int32[B, T], weights f32[B, T]), and in words."""
        texts = [
            (windows[:, :-1], weights[:, :-1])
            for windows, weights in self.held_out_batches(max_windows, batch_size)
        ]
        count = int(sum(weights[:, 0].sum() for _, weights in texts))  # there may be fewer
        return texts, f"{count} held-out windows of {self.name}"

    def evaluation_batches(
        self, max_windows: int, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same with weight 0 where a token does not count in the loss."""
        return self._held_out(max_windows, batch_size, self.weigh_held_out)

    def _held_out(
        self, max_windows: int, batch_size: int | None, weigh: batches.Weigh | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return batches.held_out_batches(
            self.held_out, self.length, batch_size or self.batch_size, self.tokenizer.bos,
            max_windows or None, weigh,
        )  # fmt: skip


def load_corpus(settings: DataSettings, progress: bool = True) -> Corpus:
    """The corpus that the settings name, with a progress bar or not.

    Texts are tokenized at first use and then read from a store in the user's cache folder.

    Raises:
      UserError: the text cannot be read, or is shorter than one batch; the tokenizer cannot be
        loaded, or has neither BOS nor EOS; a store is damaged, or of another tokenizer or split.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    tokenizer.check_separator()  # before a large text is read
    if settings.path != "python" and store.holds_store(settings.path):
        return _from_store(store.open_store(settings.path), settings, tokenizer)
    return _from_text(settings, tokenizer, progress)


def _from_store(opened: store.Store, settings: DataSettings, tokenizer: Tokenizer) -> Corpus:
    opened.check_tokenizer(tokenizer)
    held_out = opened.index["made"]["held_out"]
    if held_out != settings.held_out:
        raise UserError(
            f"held_out={settings.held_out}, but {opened.folder} was made with {held_out}",
            "held_out",
        )
    opened.check_contents()
    train, evaluation = opened.train, opened.held_out
    return _checked(Corpus(
        settings.path, opened.index["fingerprint"], tokenizer, train.tokens, evaluation.tokens,
        settings.length, settings.batch_size,
        None if train.prompts is None else train.weights,
        None if evaluation.prompts is None else evaluation.weights,
    ))  # fmt: skip


def _checked(corpus: Corpus) -> Corpus:
    """The corpus; UserError where it is too short for one batch, before anything is written."""
    corpus.train_batches(seed=0)
    corpus.held_out_batches(1)
    return corpus


# --- texts without a store --------------------------------------------------------------------


def cache_folder() -> Path:
    """Where the stores of texts are kept, below XDG_CACHE_HOME or the system's cache folder."""
    return platformdirs.user_cache_path("rope_study") / "stores"


def _from_text(settings: DataSettings, tokenizer: Tokenizer, progress: bool) -> Corpus:
    """From the cache, or tokenized here and put there; where it cannot be written, without."""
    folder = cache_folder() / _key(settings, tokenizer)
    with contextlib.suppress(UserError):  # none yet, or one that is damaged: it is made again
        return _from_store(store.open_store(folder), settings, tokenizer)
    train, held_out = split(read_documents(settings.path), settings.held_out)
    train_tokens = batches.tokenize_each(train, tokenizer, progress=progress)
    held_out_tokens = batches.tokenize_each(held_out, tokenizer)
    corpus = _checked(
        Corpus(
            name=settings.path,
            fingerprint=fingerprint(train, held_out),
            tokenizer=tokenizer,
            train=np.concatenate(train_tokens),
            held_out=np.concatenate(held_out_tokens),
            length=settings.length,
            batch_size=settings.batch_size,
        )
    )
    lengths = {"train": list(map(len, train_tokens)), "held_out": list(map(len, held_out_tokens))}
    try:
        with atomic(folder) as part:
            _write(part, corpus, lengths, settings.held_out)
    except UserError as error:
        print(f"tokens are not kept for the next start: {error.problem}", file=sys.stderr)
    return corpus


def _key(settings: DataSettings, tokenizer: Tokenizer) -> str:
    """A digest of all that the tokens depend on; of files what is in them, as they lie."""
    if settings.path == "python":
        texts = [digest(text).hex() for text in read_documents("python")]
    else:
        texts = []
        for file in find_files(settings.path):
            with explained("path"), file.open("rb") as stream:
                texts.append([ending(file), hashlib.file_digest(stream, "sha256").hexdigest()])
    made_by = tokenizer.fingerprint, tokenizer.separator, settings.held_out
    everything = json.dumps([store.FORMAT, documents.MAX_CHARACTERS, made_by, texts])
    return hashlib.sha256(everything.encode()).hexdigest()[:32]


def _write(folder: Path, corpus: Corpus, lengths: dict[str, list[int]], held_out: float) -> None:
    """A store of a corpus whose documents have those lengths in tokens, on either side."""
    writer = store.Writer(folder, corpus.train.dtype)
    sides = {}
    for side, tokens in (("train", corpus.train), ("held_out", corpus.held_out)):
        starts = np.cumsum([0, *lengths[side][:-1]], dtype=np.uint64)
        writer.append({f"{side}.tokens": tokens, f"{side}.starts": starts})
        sides[side] = {"documents": len(starts), "tokens": len(tokens)}
    writer.close()
    made = {"input": corpus.name, "held_out": held_out}
    store.write_index(
        folder, writer.state, corpus.tokenizer, corpus.fingerprint, **sides, made=made
    )
