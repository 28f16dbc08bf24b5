"""What every tokenizer offers: text to ids and back, batches that begin with BOS, labels."""

import abc
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from rope_study.checks import check
from rope_study.errors import UserError
from rope_study.files import atomic, read_json
from rope_study.files.paths import is_remote, to_path


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      name: what `load_tokenizer` takes: "bytes", or the path of a file.
      bos: the id that begins every text; None for a model that was trained without one.
      vocab_size: ids are 0..vocab_size-1.
    """

    name: str
    bos: int | None
    vocab_size: int

    @property
    def pad(self) -> int:
        """What `encode_batch` fills rows up with, at weight 0: BOS, or 0 without one."""
        return 0 if self.bos is None else self.bos

    @property
    def eos(self) -> int | None:
        """The id that ends a text in the model's training, where that is known."""
        return None

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits of what the tokenizer does, wherever its file lies."""

    @property
    def base_size(self) -> int:
        """vocab_size without tokens that were added later, which a model may have no rows for."""
        return self.vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS; UserError where it is not valid Unicode."""
        check_unicode(text, "the text")
        return np.asarray(self._encode(text), np.int32)

    @abc.abstractmethod
    def save(self, folder: Path) -> str:
        """Copies the tokenizer into a folder; `load_tokenizer` of the name returned loads it."""

    def export(self, folder: Path) -> None:
        """Writes it beside an exported model; `load_tokenizer` of the folder loads it."""
        self.save(folder)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids[n], BOS skipped; UserError for an id outside the vocabulary."""
        return self._text([i for i in self._known(ids) if i != self.bos])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """A label for figures for each of ids[n]: ▁ is a space, <0x0A> a byte (here a line end).

        Raises:
          UserError: an id is outside the vocabulary.
        """
        return [self._piece(i) for i in self._known(ids)]

    def encode_batch(
        self, texts: Sequence[str], length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Texts as one array: BOS, the text, then `pad` (BOS again) on the right.

        A model without BOS gets its texts alone, as in its training.

        Args:
          texts: B of them.
          length: the most tokens a row may have, its first BOS included; what is beyond is cut.

        Returns:
          tokens int32[B, T] and weights float32[B, T], 1 on real tokens and 0 on padding, where
          T is that of the longest row.

        Raises:
          UserError: no texts, one string in place of a list, length below 1, or not one token.
        """
        if isinstance(texts, str) or not np.iterable(texts) or not len(texts):
            raise UserError(f"texts={texts!r} must be a list with at least one text", "texts")
        check("length", length, int | None)
        if length is not None and length < 1:
            raise UserError(f"length={length} must be at least 1, the BOS", "length")
        start = [] if self.bos is None else [self.bos]
        rows = [[*start, *self.encode(text)][:length] for text in texts]
        shape = len(rows), max(len(row) for row in rows)
        if not shape[1]:
            raise UserError(
                f"texts={texts!r} have no tokens, and tokenizer {self.name!r} has no BOS that"
                " would begin them: give one that is not empty",
                "texts",
            )
        tokens = np.full(shape, self.pad, np.int32)
        weights = np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            weights[i, : len(row)] = 1
        return tokens, weights

    def encode_document(self, text: str) -> np.ndarray:
        """Ids int32[n] of a document in a stream: after BOS, or without one before EOS.

        Raises:
          UserError: the text is not valid Unicode, or the tokenizer has neither.
        """
        return self.as_document(self.encode(text))

    def as_document(self, ids: np.ndarray) -> np.ndarray:
        """Ids int32[n + 1] of a document from its own; UserError without BOS and EOS."""
        self.check_separator()
        parts = [ids, [self.eos]] if self.bos is None else [[self.bos], ids]
        return np.concatenate(parts).astype(np.int32)

    @property
    def separator(self) -> int:
        """The id that begins documents in a stream, or ends them: BOS or EOS."""
        self.check_separator()
        separator = self.eos if self.bos is None else self.bos
        assert separator is not None
        return separator

    def check_separator(self) -> None:
        """UserError for a tokenizer with neither BOS nor EOS: documents could not be told apart."""
        if self.bos is None and self.eos is None:
            raise no_bos(f"tokenizer {self.name!r}")

    def _known(self, ids: Sequence[int]) -> list[int]:
        known = np.asarray(ids)
        if known.ndim != 1 or (known.size and known.dtype.kind not in "iu"):
            raise UserError(f"ids={ids!r:.80} must be a list of whole numbers", "ids")
        for i in known.tolist():
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"id {i} is not in tokenizer {self.name!r}, 0..{self.vocab_size - 1}",
                    "tokenizer",
                )
        return known.tolist()

    @abc.abstractmethod
    def _encode(self, text: str) -> Sequence[int] | np.ndarray: ...

    @abc.abstractmethod
    def _text(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _piece(self, i: int) -> str: ...


SETTINGS_FILE = "tokenizer_config.json"  # Hugging Face's, beside a tokenizer.model or .json


class FileTokenizer(Tokenizer):
    """A tokenizer that one file defines.

    Attributes:
      file_name: of its copy in a run's folder.
    """

    file_name: ClassVar[str]

    def __init__(self, path: str | os.PathLike):
        """Finds the file, ~ expanded; UserError if there is none."""
        self.name = str(path)
        self._file = to_path(path, "tokenizer")
        if not self._file.is_file():
            raise UserError(f"tokenizer {self.name!r} is not a file", "tokenizer")

    @property
    def fingerprint(self) -> str:
        """Of the content of the file, and BOS: for some kinds it comes from elsewhere."""
        digest = hashlib.sha256(self._file.read_bytes())
        digest.update(f"bos={self.bos}".encode())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> str:
        """Copies the file into a folder as `file_name`."""
        target = folder / self.file_name
        # A run that goes on may be given the copy in its own folder.
        if not _same_file(target, self._file):
            with atomic(target) as part:
                part.write_bytes(self._file.read_bytes())
        return self.file_name


def _same_file(path: Path, other: Path) -> bool:
    if is_remote(path) or is_remote(other):
        return str(path) == str(other)
    return path.exists() and path.samefile(other)


def check_unicode(text: str, place: str) -> None:
    """Refuses what is no text, and lone surrogates; `place` names the text in the error.

    Python makes those of bytes that are not UTF-8, as on a command line in another encoding.
    """
    if not isinstance(text, str):
        raise UserError(
            f"{place}, {text!r:.60}, is of type {type(text).__name__}, no string", "text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} is not valid Unicode: {text[error.start]!r} at place {error.start}, as Python"
            " writes a byte that was not UTF-8",
            "text",
        ) from error


def read_object(file: Path) -> dict:
    """A JSON object, {} where there is no such file; UserError where it is something else."""
    return read_json(file, remedy="mend or remove it") if file.is_file() else {}


def no_bos(tokenizer: str) -> UserError:
    """The error of a tokenizer, named as its first words, with neither BOS nor EOS."""
    return UserError(
        f"{tokenizer} has no BOS id, and no EOS id either: nothing would part one document from the"
        " next; give the tokenizer of a model that has one",
        "tokenizer",
    )


def label(text: str) -> str:
    """A text for figures: spaces, line ends and tabs are made visible."""
    return text.replace(" ", "▁").replace("\n", "<0x0A>").replace("\t", "<0x09>")
