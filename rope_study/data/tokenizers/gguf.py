"""The tokenizer in the metadata of a GGUF file, built with the library tokenizers."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from rope_study.data.gguf_file import GGUFFile
from rope_study.data.tokenizers.base import FileTokenizer
from rope_study.data.tokenizers.hugging_face import HuggingFaceTokenizer, write_tokenizer
from rope_study.errors import UserError

# Kinds of tokens in tokenizer.ggml.token_type.
CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"  # what SentencePiece writes for a space

# How text is split before byte-level BPE, as the models' own tokenizer.json does.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "tekken": _TEKKEN,
}  # fmt: skip
GPT2 = ("gpt-2", "phi-2")  # GPT-2's own rule
DIGITS = ("smollm", "starcoder", "refact", "command-r")  # each digit alone, then GPT-2's rule
# Text that is a piece as a whole is that piece, whatever the merges; and BOS where nothing is said.
WHOLE_PIECES = ("llama-bpe", "llama3", "llama-v3", "tekken")


class GGUFTokenizer(HuggingFaceTokenizer):
    """What a GGUF file says of its model's tokenizer; saved as a tokenizer.json.

    As in Transformers, a special token that is written out in a text becomes that token.
    """

    def __init__(self, path: str | os.PathLike):
        """Reads the metadata: SentencePiece with scores ("llama") or byte-level BPE ("gpt2").

        BOS is bos_token_id where add_bos_token says that the model was trained with it.

        Raises:
          UserError: no such file, another kind of tokenizer, or one that does not fit together.
        """
        file = GGUFFile(path)
        FileTokenizer.__init__(self, file.file)  # not that of a tokenizer.json
        pieces = file.required("tokenizer.ggml.tokens")
        kind = file.required("tokenizer.ggml.model")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(
                f"{file.file}: tokenizer {kind!r} is not supported; supported: {', '.join(KINDS)}"
            )
        try:
            tokenizer = KINDS[kind](file, pieces)
            tokenizer.add_tokens(_added_tokens(file, pieces))
            self.bos = _bos(file, kind)
            settings = {"bos_token": None if self.bos is None else pieces[self.bos]}
            for name, key in (("eos_token", "eos_token_id"), ("pad_token", "padding_token_id")):
                number = file.value(f"tokenizer.ggml.{key}")
                settings[name] = None if number is None else pieces[number]
        except UserError:
            raise
        except Exception as error:  # the library raises nothing more specific
            raise UserError(
                f"{file.file}: the tokenizer does not fit together ({' '.join(str(error).split())})"
            ) from error
        self._set_up(tokenizer, settings)

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer.json that is saved, and BOS; of the weights beside it nothing."""
        content = self._tokenizer.to_str().encode() + f"bos={self.bos}".encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def save(self, folder: Path) -> str:
        """Writes tokenizer.json into a folder, and a tokenizer_config.json that names BOS."""
        asked = {"add_bos_token": self.bos is not None}
        write_tokenizer(self._tokenizer, self._settings | asked, folder)
        return self.file_name


def _bos(file: GGUFFile, kind: str) -> int | None:
    """The id that begins texts; None where the model was trained without."""
    expected = kind == "llama" or file.value("tokenizer.ggml.pre") in WHOLE_PIECES
    if not file.value("tokenizer.ggml.add_bos_token", expected):
        return None
    return file.required("tokenizer.ggml.bos_token_id")


def _added_tokens(file: GGUFFile, pieces: list[str]) -> list[AddedToken]:
    """Tokens that are found in a text before anything else."""
    kinds = file.value("tokenizer.ggml.token_type", [])
    return [
        AddedToken(piece, normalized=False, special=kind == CONTROL)
        for piece, kind in zip(pieces, kinds, strict=bool(kinds))
        # Gemma's runs of spaces are pieces like others: see _sentencepiece.
        if kind in (CONTROL, USER_DEFINED) and not _is_spaces(piece)
    ]


# --- kinds ------------------------------------------------------------------------------------


def _byte_level(file: GGUFFile, pieces: list[str]) -> tokenizers.Tokenizer:
    """BPE over bytes with its merges, after the split that the file names."""
    pre = file.value("tokenizer.ggml.pre")
    if pre not in SPLITS and pre not in GPT2 + DIGITS:
        known = [*SPLITS, *GPT2, *DIGITS]
        raise UserError(
            f"{file.file}: tokenizer.ggml.pre={pre!r} is not supported."
            f" Supported: {', '.join(known)}"
        )
    merges = [tuple(merge.split(" ")) for merge in file.required("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(_ids(pieces), merges, ignore_merges=pre in WHOLE_PIECES)
    )
    if pre in SPLITS:
        first = [pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")]
    else:
        first = [pre_tokenizers.Digits(individual_digits=True)] if pre in DIGITS else []
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GGUFFile, pieces: list[str]) -> tokenizers.Tokenizer:
    """BPE over characters by the scores of pieces; what has no piece is spelled in bytes."""
    pieces = [SPACE * len(piece) if _is_spaces(piece) else piece for piece in pieces]
    if str(file.value("general.architecture")).startswith("gemma"):
        scores = [-i for i in range(len(pieces))]  # its runs of spaces and line ends have none
    else:
        scores = file.required("tokenizer.ggml.scores")
    unknown = file.value("tokenizer.ggml.unknown_token_id")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            _ids(pieces), _merges(pieces, scores), byte_fallback=True, fuse_unk=True,
            unk_token=None if unknown is None else pieces[unknown],
        )
    )  # fmt: skip
    spaces = [normalizers.Replace(" ", SPACE)]
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.value("tokenizer.ggml.add_space_prefix", True):
        spaces = [normalizers.Prepend(SPACE), *spaces]
        parts.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _merges(pieces: list[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, that of the best score first.

    SentencePiece knows the score of what two neighbours make together, and tokenizers a list of
    pairs; of pairs that make the same piece the one with the longest beginning goes first.
    """
    known = set(pieces)
    ranked = [
        (score, cut, len(piece) - cut, piece)
        for piece, score in zip(pieces, scores, strict=True)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    ranked.sort(key=lambda pair: pair[:3], reverse=True)
    return [(piece[:cut], piece[cut:]) for _, cut, _, piece in ranked]


def _ids(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def _is_spaces(piece: str) -> bool:
    return len(piece) > 0 and not piece.strip(" ")


KINDS = {"llama": _sentencepiece, "gpt2": _byte_level}
