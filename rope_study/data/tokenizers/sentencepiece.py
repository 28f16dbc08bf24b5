"""SentencePiece models, such as Gemma's tokenizer.model."""

import json
import os
from pathlib import Path

import sentencepiece

from rope_study.data.tokenizers.base import (
    SETTINGS_FILE,
    FileTokenizer,
    label,
    read_object,
)
from rope_study.data.tokenizers.words import Words
from rope_study.errors import UserError
from rope_study.files import write_atomically
from rope_study.files.paths import local_copy


class SentencePieceTokenizer(FileTokenizer):
    """A SentencePiece model file, such as Gemma's tokenizer.model."""

    file_name = "tokenizer.model"

    def __init__(self, path: str | os.PathLike):
        """Loads the model; UserError if it is missing or corrupt.

        Texts begin with BOS where it has one, unless add_bos_token in tokenizer_config.json beside
        it is false.
        """
        super().__init__(path)
        try:
            file = str(local_copy(self._file))
            self._processor = sentencepiece.SentencePieceProcessor(model_file=file)
            self._words = Words(self._processor) if Words.apply_to(self._processor) else None
        except (RuntimeError, OSError, UnicodeDecodeError, TypeError) as error:  # not UTF-8: bytes
            raise UserError(
                f"tokenizer {self.name!r} is not a SentencePiece model ({error})", "tokenizer"
            ) from error
        self.vocab_size = self._processor.vocab_size()
        asked = read_object(self._file.with_name(SETTINGS_FILE)).get("add_bos_token") is not False
        bos = self._processor.bos_id()
        self.bos = bos if asked and bos >= 0 else None

    @property
    def eos(self) -> int | None:
        """The model's end of a text."""
        eos = self._processor.eos_id()
        return None if eos < 0 else eos

    def save(self, folder: Path) -> str:
        """Copies the model, and where it goes without BOS a tokenizer_config.json that says so."""
        if self.bos is None:
            settings = json.dumps({"add_bos_token": False}, indent=1)
            write_atomically(folder / SETTINGS_FILE, settings + "\n")
        return super().save(folder)

    def _encode(self, text: str) -> list[int]:
        return (self._words or self._processor).encode(text)

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, i: int) -> str:
        return label(self._processor.id_to_piece(i))
