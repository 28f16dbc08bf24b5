"""Tokenizers by name: bytes, or a file of SentencePiece, Hugging Face or llama2.c."""

import os
from pathlib import Path

import numpy as np
import sentencepiece

from rope_study.data.base_tokenizer import (
    WHERE,
    Tokenizer,
    copy_file,
    existing_file,
    label,
    no_bos,
)
from rope_study.data.hugging_face_tokenizer import HuggingFaceTokenizer
from rope_study.data.llama2c_tokenizer import Llama2cTokenizer
from rope_study.errors import UserError, nearest

# What a folder is searched for, in this order.
IN_FOLDER = ("tokenizer.model", "tokenizer.json", "tok*.bin")


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0..255, and BOS. Bytes that are not UTF-8 decode to U+FFFD."""

    name = "bytes"
    bos = 256
    vocab_size = 257

    def encode(self, text: str) -> np.ndarray:
        """Ids int32[n] of a text, without BOS."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def save(self, folder: Path) -> str:
        """Nothing to copy: the name is all there is."""
        return self.name

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


KINDS = {
    ".model": SentencePieceTokenizer,
    ".json": HuggingFaceTokenizer,
    ".bin": Llama2cTokenizer,
}


def load_tokenizer(spec: str | os.PathLike) -> Tokenizer:
    """The tokenizer that config.data.tokenizer names.

    Args:
      spec: "bytes"; the path of a SentencePiece model (*.model), of a tokenizer.json (*.json) or of
        a tokenizer.bin of llama2.c (*.bin); or a folder that holds one, looked for in that order.

    Raises:
      UserError: another name, nothing in the folder, or a file that is missing or corrupt.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = Path(os.path.expanduser(str(spec)))
    if path.is_dir():
        path = spec = _find_in(path)
    if path.suffix not in KINDS:
        raise UserError(
            f"unknown tokenizer {spec!r}.{nearest(str(spec), ['bytes'])}"
            f' Allowed: "bytes", the path of a SentencePiece model ending in .model, of a'
            f" tokenizer.json ending in .json or of a llama2.c tokenizer ending in .bin, or a"
            f" folder that holds one; {WHERE}"
        )
    return KINDS[path.suffix](spec)


def _find_in(folder: Path) -> Path:
    for pattern in IN_FOLDER:
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UserError(f"tokenizer folder {str(folder)!r} holds {names}: {WHERE} to one")
        if files:
            return files[0]
    raise UserError(
        f"tokenizer folder {str(folder)!r} holds none of {', '.join(IN_FOLDER)}; {WHERE}"
    )
