"""Bytes as tokens."""

import hashlib
from pathlib import Path

import numpy as np

from rope_study.data.tokenizers.base import Tokenizer


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0..255, and BOS. Bytes that are not UTF-8 decode to U+FFFD."""

    name = "bytes"
    bos = 256
    vocab_size = 257

    @property
    def fingerprint(self) -> str:
        """A constant: there is one way to do this."""
        return hashlib.sha256(b"bytes, bos=256").hexdigest()[:16]

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
