"""Tokenizers: text to ids and back, by bytes or by a SentencePiece model."""

import abc
import os
from collections.abc import Sequence

import numpy as np
import sentencepiece

from rope_study.errors import UserError, nearest

WHERE = "set config.data.tokenizer"


class Tokenizer(abc.ABC):
    """What both tokenizers share: name (as in config.data.tokenizer), bos and vocab_size."""

    name: str
    bos: int
    vocab_size: int

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS."""

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
        """Texts as one array: BOS, the text, then BOS again as padding on the right.

        Args:
          texts: B of them.
          length: the most tokens a row may have, its first BOS included; what is beyond is cut.

        Returns:
          tokens int32[B, T] and weights float32[B, T], 1 on real tokens and 0 on padding, where
          T is that of the longest row.

        Raises:
          UserError: no texts, one string in place of a list, or length below 1.
        """
        if isinstance(texts, str) or not len(texts):
            raise UserError(f"texts={texts!r} must be a list with at least one text")
        if length is not None and length < 1:
            raise UserError(f"length={length} must be at least 1, the BOS; set config.data.length")
        rows = [[self.bos, *self.encode(text)][:length] for text in texts]
        shape = len(rows), max(len(row) for row in rows)
        tokens = np.full(shape, self.bos, np.int32)
        weights = np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            weights[i, : len(row)] = 1
        return tokens, weights

    def _known(self, ids: Sequence[int]) -> list[int]:
        ids = np.asarray(ids, np.int64).tolist()
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"id {i} is not in tokenizer {self.name!r}, 0..{self.vocab_size - 1}; {WHERE}"
                )
        return ids

    @abc.abstractmethod
    def _text(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _piece(self, i: int) -> str: ...


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0..255, and BOS. Bytes that are not UTF-8 decode to U+FFFD."""

    name = "bytes"
    bos = 256
    vocab_size = 257

    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def _text(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def _piece(self, i: int) -> str:
        if i == self.bos:
            return "<bos>"
        if i == ord(" "):
            return "▁"
        return chr(i) if i < 128 and chr(i).isprintable() else f"<0x{i:02X}>"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file, such as Gemma's tokenizer.model."""

    def __init__(self, path: str):
        """Loads the model; UserError if it is missing, corrupt or without a BOS id."""
        self.name = str(path)
        file = os.path.expanduser(self.name)
        if not os.path.isfile(file):
            raise UserError(f"tokenizer {self.name!r} is not a file; {WHERE}")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=file)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"tokenizer {self.name!r} is not a SentencePiece model ({error}); {WHERE}"
            ) from error
        self.bos = self._processor.bos_id()
        self.vocab_size = self._processor.vocab_size()
        if self.bos < 0:
            raise UserError(
                f"tokenizer {self.name!r} has no BOS id: every window starts with BOS, as in"
                f" training, and Gemma gives garbage without it; {WHERE} to a model that has one"
            )

    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS."""
        return np.array(self._processor.encode(text), np.int32)

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, i: int) -> str:
        return self._processor.id_to_piece(i).replace("\n", "<0x0A>").replace("\t", "<0x09>")


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that config.data.tokenizer names: "bytes", or a path ending in .model.

    Raises:
      UserError: another name, or a model that is missing, corrupt or without a BOS id.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if str(spec).endswith(".model"):
        return SentencePieceTokenizer(spec)
    raise UserError(
        f"unknown tokenizer {spec!r}.{nearest(str(spec), ['bytes'])}"
        f' Allowed: "bytes", or the path of a SentencePiece model ending in .model; {WHERE}'
    )
