"""The tokenizer.bin of llama2.c: pieces with scores, joined as SentencePiece's BPE joins them."""

import heapq
import math
import os
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from rope_study.data.tokenizers.base import FileTokenizer, label
from rope_study.errors import UserError

# Ids 0, 1 and 2 are <unk>, <s> and </s>; then come the 256 bytes, then pieces of text.
BOS = 1
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256


class Llama2cTokenizer(FileTokenizer):
    """A tokenizer.bin of llama2.c, such as tok512.bin of its TinyStories models."""

    file_name = "tokenizer.bin"
    bos = BOS

    def __init__(self, path: str | os.PathLike):
        """Loads the file; UserError if it is missing, cut off or something else."""
        super().__init__(path)
        try:
            with self._file.open("rb") as stream:
                entries = list(_read_entries(stream))
            _check_bytes([piece for _, piece in entries])
        except ValueError as error:
            raise UserError(
                f"tokenizer {self.name!r} is cut off or no tokenizer.bin of llama2.c ({error})",
                "tokenizer",
            ) from error
        self.vocab_size = len(entries)
        self._pieces = [piece for _, piece in entries]
        self._ids = {self._pieces[i]: i for i in range(FIRST_PIECE, len(entries))}
        self._scores = {piece: entries[i][0] for piece, i in self._ids.items()}

    def _encode(self, text: str) -> list[int]:
        """As in training, a space is put in front of the text."""
        ids = []
        for piece in _join(list(" " + text) if text else [], self._scores):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += [FIRST_BYTE + byte for byte in piece.encode()]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids[n], without each BOS and the space that `encode` puts after it.

        Raises:
          UserError: an id is outside the vocabulary.
        """
        documents: list[list[int]] = [[]]
        for i in self._known(ids):
            if i == BOS:
                documents.append([])
            else:
                documents[-1].append(i)
        return "".join(map(self._text, documents))

    def _text(self, ids: list[int]) -> str:
        raw = b"".join(self._raw(i) for i in ids)
        return raw.decode(errors="replace").removeprefix(" ")

    def _raw(self, i: int) -> bytes:
        if FIRST_BYTE <= i < FIRST_PIECE:
            return bytes([i - FIRST_BYTE])
        return self._pieces[i].encode()

    def _piece(self, i: int) -> str:
        # llama2.c writes line ends around <s> and </s>.
        return label(self._pieces[i].strip() if i < FIRST_BYTE else self._pieces[i])


def _join(pieces: list[str], scores: dict[str, float]) -> list[str]:
    """Joins two neighbours at a time into a piece that has a score, until none can be.

    The best score goes first, of equal ones the leftmost. Candidates wait in a heap, because a
    search through the whole text for each of n joints takes n^2 steps.
    """
    before, after = list(range(-1, len(pieces) - 1)), list(range(1, len(pieces) + 1))
    candidates = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < len(pieces) and pieces[left] + pieces[right] in scores:
            score = scores[pieces[left] + pieces[right]]
            heapq.heappush(candidates, (-score, left, right, pieces[left], pieces[right]))

    for left in range(len(pieces) - 1):
        offer(left, left + 1)
    while candidates:
        _, left, right, *expected = heapq.heappop(candidates)
        if [pieces[left], pieces[right]] != expected:
            continue  # one of them has been joined to another meanwhile
        pieces[left], pieces[right] = pieces[left] + pieces[right], ""
        after[left] = after[right]
        if after[left] < len(pieces):
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [piece for piece in pieces if piece]


# --- the file ---------------------------------------------------------------------------------


def _read_entries(stream: BinaryIO) -> Iterator[tuple[float, str]]:
    """(score, piece) of every id; ValueError where the file cannot go on like that."""
    (longest,) = struct.unpack("<i", _exactly(stream, 4))
    while start := stream.read(8):
        score, length = struct.unpack("<fi", start + _exactly(stream, 8 - len(start)))
        if not math.isfinite(score) or not 0 < length <= longest:
            raise ValueError(f"at byte {stream.tell() - 8}: score {score}, length {length}")
        yield score, _exactly(stream, length).decode()


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise ValueError(f"it ends at byte {stream.tell()}, inside a token")
    return content


def _check_bytes(pieces: list[str]) -> None:
    for byte in range(256):
        i, expected = FIRST_BYTE + byte, f"<0x{byte:02X}>"
        if pieces[i : i + 1] != [expected]:
            raise ValueError(f"id {i} must be {expected}, found {pieces[i : i + 1] or 'no more'}")
