"""SentencePiece models, such as Gemma's tokenizer.model."""

import os

import numpy as np
import sentencepiece

from rope_study.data.tokenizers.base import FileTokenizer, label, no_bos
from rope_study.errors import UserError


class SentencePieceTokenizer(FileTokenizer):
    """A SentencePiece model file, such as Gemma's tokenizer.model."""

    file_name = "tokenizer.model"

    def __init__(self, path: str | os.PathLike):
        """Loads the model; UserError if it is missing, corrupt or without a BOS id."""
        super().__init__(path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(self._file))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"tokenizer {self.name!r} is not a SentencePiece model ({error})", "tokenizer"
            ) from error
        self.bos = self._processor.bos_id()
        self.vocab_size = self._processor.vocab_size()
        if self.bos < 0:
            raise no_bos(f"tokenizer {self.name!r}")

    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS."""
        return np.array(self._processor.encode(text), np.int32)

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, i: int) -> str:
        return label(self._processor.id_to_piece(i))
