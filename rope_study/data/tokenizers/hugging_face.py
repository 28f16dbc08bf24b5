"""A tokenizer.json as Hugging Face ships it, with the BOS that its model was trained with."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import tokenizers

from rope_study.data.tokenizers.base import SETTINGS_FILE, FileTokenizer, label, read_object
from rope_study.errors import UserError
from rope_study.files import write_atomically
from rope_study.files.paths import local_copy

MODEL_FILE = "config.json"

# Only Gemma's vocabularies have this one, and Gemma always needs it.
GEMMA_BOS = "<bos>"
KNOWN_BOS = (GEMMA_BOS, "<s>", "<|begin_of_text|>", "<|endoftext|>")


class HuggingFaceTokenizer(FileTokenizer):
    """A tokenizer.json, and what the files beside it say of its special tokens.

    As in Transformers, a special token that is written out in a text becomes that token.
    """

    file_name = "tokenizer.json"

    def __init__(self, path: str | os.PathLike):
        """Loads the file.

        Whether texts begin with BOS is as in Transformers: by add_bos_token in
        tokenizer_config.json, else by the post-processor in the file. Gemma's <bos> is used even if
        nothing asks for it; and of a file alone, without a model beside it, a special token of a
        well-known name.

        Raises:
          UserError: a file is missing or corrupt, BOS is not in the vocabulary, or it is a Gemma
            tokenizer without BOS.
        """
        super().__init__(path)
        settings = read_object(self._file.with_name(SETTINGS_FILE))
        with _refused(self.name):
            self._set_up(_load(self._file), settings)
            self.bos = self._find_bos(self._file.with_name(MODEL_FILE))

    def _set_up(self, tokenizer: tokenizers.Tokenizer, settings: dict) -> None:
        """Takes a tokenizer, and what tokenizer_config.json says of its special tokens."""
        self._tokenizer, self._settings = tokenizer, settings
        self._vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        # Not their number: added tokens may leave ids unused.
        self.vocab_size = max(self._vocabulary.values(), default=-1) + 1
        if self.vocab_size > 2**31:
            raise ValueError(f"id {self.vocab_size - 1} is more than int32 holds")
        self._is_byte_level = "ByteLevel" in str(tokenizer.decoder)

    @property
    def eos(self) -> int | None:
        """Its eos_token."""
        return self._special("eos_token")

    @property
    def pad(self) -> int:
        """BOS; for a model without one its pad_token, its eos_token, or 0."""
        known = (self.bos, self._special("pad_token"), self.eos)
        return next((i for i in known if i is not None), 0)

    @property
    def base_size(self) -> int:
        """The largest id of the model's own vocabulary, and 1."""
        added = self._tokenizer.get_added_tokens_decoder()
        return max((i for i in self._vocabulary.values() if i not in added), default=-1) + 1

    def save(self, folder: Path) -> str:
        """Copies tokenizer.json into a folder, with a tokenizer_config.json that names BOS."""
        bos = None if self.bos is None else self._tokenizer.id_to_token(self.bos)
        _write_settings(
            self._settings | {"add_bos_token": bos is not None, "bos_token": bos}, folder
        )
        return super().save(folder)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _piece(self, i: int) -> str:
        piece = self._tokenizer.id_to_token(i)
        if piece is None:
            return f"<{i}>"
        return label(_unwrap(piece) if self._is_byte_level else piece)

    def _special(self, name: str) -> int | None:
        """The id of a special token that tokenizer_config.json names."""
        token = _content(self._settings.get(name))
        return None if token is None else self._vocabulary.get(token)

    def _find_bos(self, model_file: Path) -> int | None:
        model = read_object(model_file)
        named, bos = self._named_bos(), None
        asked = self._settings.get("add_bos_token")
        if asked not in (None, True, False):
            raise UserError(
                f"add_bos_token={asked!r} of {self._file.with_name(SETTINGS_FILE)} must be true or"
                " false"
            )
        if asked is not False:
            bos = named if asked and named is not None else self._prepended()
            if bos is None and not self._settings and not model:
                bos = self._well_known_bos()
        if bos is None:
            bos = self._vocabulary.get(GEMMA_BOS)
        if bos is None and "gemma" in str(model.get("model_type")):
            raise UserError(
                f"tokenizer {self.name!r} is of a Gemma model by {MODEL_FILE} and has no BOS id:"
                " released Gemma gives garbage without it (gemma-7b on LAMBADA: perplexity 5.9e9"
                f" without, 3.46 with); set bos_token in {SETTINGS_FILE} beside it"
            )
        return bos

    def _named_bos(self) -> int | None:
        setting = self._settings.get("bos_token")
        if setting is None:
            return None
        token = _content(setting)
        if token not in self._vocabulary:
            raise UserError(
                f"bos_token={setting!r} of {self._file.with_name(SETTINGS_FILE)} is not in the"
                f" vocabulary of tokenizer {self.name!r}; set it to a token that is, or to null"
            )
        return self._vocabulary[token]

    def _prepended(self) -> int | None:
        """What the post-processor of the file puts before every text."""
        for text in ("a", "0", " "):  # until one has a token
            if text_ids := self._encode(text):
                ids = self._tokenizer.encode(text, add_special_tokens=True).ids
                return None if ids[: len(text_ids)] == text_ids else ids[0]
        return None

    def _well_known_bos(self) -> int | None:
        """Of special tokens alone: "<s>" in text is HTML."""
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        return next((special[name] for name in KNOWN_BOS if name in special), None)


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    """What the library says of a file that it cannot read, or trips over, as one line."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # The library raises nothing more specific; what it trips over is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"tokenizer {name!r} is not a tokenizer.json of Hugging Face"
            f" ({' '.join(str(error).split())})",
            "tokenizer",
        ) from error


def _load(file: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(local_copy(file)))
    # The file may ask for both, for batches of its own model.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def write_tokenizer(tokenizer: tokenizers.Tokenizer, settings: dict, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json into a folder."""
    _write_settings(settings, folder)
    path = folder / HuggingFaceTokenizer.file_name
    write_atomically(path, tokenizer.to_str())


def _write_settings(settings: dict, folder: Path) -> None:
    write_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")


def _content(token: str | dict | None) -> str | None:
    """A special token is spelled "<s>", or {"content": "<s>", ...}."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


# --- labels of byte-level BPE -----------------------------------------------------------------


def _byte_of() -> dict[str, int]:
    """Byte-level BPE spells each byte as one visible character.

    Bytes that are visible in Latin-1 stand for themselves, the others for U+0100 on, in order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    characters = {chr(byte): byte for byte in visible}
    return characters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_of()


def _unwrap(piece: str) -> str:
    """The text of a byte-level piece; <0xE6> for each byte if they are part of a character."""
    if not all(character in BYTE_OF for character in piece):
        return piece  # an added token, spelled as it is
    raw = bytes(BYTE_OF[character] for character in piece)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)
