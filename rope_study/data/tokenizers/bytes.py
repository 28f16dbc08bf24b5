"""Bytes as tokens."""

import hashlib
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers

from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.hugging_face import BYTE_OF, GEMMA_BOS, write_tokenizer


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0..255, and BOS. Bytes that are not UTF-8 decode to U+FFFD."""

    name = "bytes"
    bos = 256
    vocab_size = 257

    @property
    def fingerprint(self) -> str:
        """A constant: there is one way to do this."""
        return hashlib.sha256(b"bytes, bos=256").hexdigest()[:16]

    def save(self, folder: Path) -> str:
        """Nothing to copy: the name is all there is."""
        return self.name

    def export(self, folder: Path) -> None:
        """The same ids as a tokenizer.json, for Transformers too."""
        bytes_ = {byte: character for character, byte in BYTE_OF.items()}
        vocabulary = {bytes_[byte]: byte for byte in range(256)}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([GEMMA_BOS])
        write_tokenizer(tokenizer, {"add_bos_token": True, "bos_token": GEMMA_BOS}, folder)

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8)

    def _text(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def _piece(self, i: int) -> str:
        if i == self.bos:
            return GEMMA_BOS
        if i == ord(" "):
            return "▁"
        return chr(i) if i < 128 and chr(i).isprintable() else f"<0x{i:02X}>"
