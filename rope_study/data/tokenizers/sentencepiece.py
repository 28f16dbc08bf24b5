"""SentencePiece models, such as Gemma's tokenizer.model."""

import os
from pathlib import Path

import numpy as np
import sentencepiece

from rope_study.data.tokenizers.base import (
    WHERE,
    Tokenizer,
    copy_file,
    existing_file,
    label,
    no_bos,
)
from rope_study.errors import UserError


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file, such as Gemma's tokenizer.model."""

    def __init__(self, path: str | os.PathLike):
        """Loads the model; UserError if it is missing, corrupt or without a BOS id."""
        self.name = str(path)
        self._file = existing_file(self.name)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(self._file))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"tokenizer {self.name!r} is not a SentencePiece model ({error}); {WHERE}"
            ) from error
        self.bos = self._processor.bos_id()
        self.vocab_size = self._processor.vocab_size()
        if self.bos < 0:
            raise no_bos(f"tokenizer {self.name!r}")

    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS."""
        return np.array(self._processor.encode(text), np.int32)

    def save(self, folder: Path) -> str:
        """Copies the model into a folder as tokenizer.model."""
        return copy_file(self._file, folder, "tokenizer.model")

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, i: int) -> str:
        return label(self._processor.id_to_piece(i))
