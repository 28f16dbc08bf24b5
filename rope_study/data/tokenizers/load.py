"""Tokenizers by name: bytes, or a file of SentencePiece, Hugging Face, llama2.c or GGUF."""

import os
from pathlib import Path

from rope_study.data.tokenizers.base import Tokenizer
from rope_study.data.tokenizers.bytes import ByteTokenizer
from rope_study.data.tokenizers.gguf import GGUFTokenizer
from rope_study.data.tokenizers.hugging_face import HuggingFaceTokenizer
from rope_study.data.tokenizers.llama2c import Llama2cTokenizer
from rope_study.data.tokenizers.sentencepiece import SentencePieceTokenizer
from rope_study.errors import UserError, nearest
from rope_study.files.paths import to_path

# What a folder is searched for, in this order.
IN_FOLDER = ("tokenizer.model", "tokenizer.json", "tok*.bin", "*.gguf")

# By the ending of the file.
KINDS = {
    ".model": SentencePieceTokenizer,
    ".json": HuggingFaceTokenizer,
    ".bin": Llama2cTokenizer,
    ".gguf": GGUFTokenizer,
}


def load_tokenizer(spec: str | os.PathLike) -> Tokenizer:
    """The tokenizer of that name.

    Args:
      spec: "bytes"; the path of a SentencePiece model (*.model), of a tokenizer.json (*.json), of
        a tokenizer.bin of llama2.c (*.bin) or of a model in GGUF (*.gguf); or a folder that holds
        one, looked for in that order. Of a tokenizer.model and a tokenizer.json in one folder it is
        the one with more tokens, as where chat tokens were added, and else the second.

    Raises:
      UserError: another name, nothing in the folder, or a file that is missing or corrupt.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = to_path(spec, "tokenizer")
    if path.is_dir():
        if (richer := _richer(path)) is not None:
            return richer
        path = spec = _find_in(path)
    if path.suffix not in KINDS:
        raise UserError(
            f"unknown tokenizer {spec!r}.{nearest(str(spec), ['bytes'])}"
            f' Allowed: "bytes", the path of a SentencePiece model ending in .model, of a'
            f" tokenizer.json ending in .json, of a llama2.c tokenizer ending in .bin or of a GGUF"
            f" file ending in .gguf, or a folder that holds one",
            "tokenizer",
        )
    return KINDS[path.suffix](spec)


def _richer(folder: Path) -> Tokenizer | None:
    """Of a tokenizer.model and a tokenizer.json the one with more tokens; None without the two.

    Added tokens of chats and tools are often in the second only, which Transformers reads.
    """
    model, file = folder / "tokenizer.model", folder / "tokenizer.json"
    if not (model.is_file() and file.is_file()):
        return None
    second = HuggingFaceTokenizer(file)
    try:
        first = SentencePieceTokenizer(model)
    except UserError:  # other formats are called so too
        return second
    return first if first.vocab_size > second.vocab_size else second


def _find_in(folder: Path) -> Path:
    for pattern in IN_FOLDER:
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UserError(
                f"tokenizer folder {str(folder)!r} holds {names}: name one", "tokenizer"
            )
        if files:
            return files[0]
    raise UserError(
        f"tokenizer folder {str(folder)!r} holds none of {', '.join(IN_FOLDER)}", "tokenizer"
    )
