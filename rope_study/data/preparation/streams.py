"""Files as streams: decompressed piece by piece, and cut into blocks of whole records."""

import dataclasses
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rope_study.data.text_files import OPENERS
from rope_study.errors import UserError
from rope_study.files.paths import size_of

READ = 2**20  # bytes decompressed at a time
MAX_RECORD = 2**28  # bytes of one document: it is held in memory several times


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole records of one file: what a worker takes at once.

    Attributes:
      content: bytes, or what the reader of the format makes.
      first: number of its first record in the file - line, page, row - from 1 on.
      position: bytes of the file that were read up to here.
      header: what stands before all records of the file, where they depend on it.
      whole: nothing else is in the file.
    """

    content: Any
    first: int
    position: int
    header: bytes = b""
    whole: bool = False


def optional(module: str) -> Any:
    """A module of the extra `prepare`; UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this input needs {module.split('.')[0]}: pip install 'rope_study[prepare]'", "input"
        ) from error


def chunks(file: Path, size: int = READ) -> Iterator[tuple[bytes, int]]:
    """(at most `size` bytes, decompressed; how much of the file was read for them) until its end.

    Raises:
      UserError: it cannot be read, is damaged, or ends too early.
    """
    errors: tuple[type[Exception], ...] = (OSError, EOFError, lzma.LZMAError, zlib.error)
    ending = file.suffix.lower()
    if ending == ".zst":
        errors += (optional("zstandard").ZstdError,)
    try:
        with file.open("rb") as raw:
            pieces = _zstd(raw) if ending == ".zst" else _pieces(raw, OPENERS.get(ending))
            for piece in pieces:
                for start in range(0, len(piece), size):
                    yield piece[start : start + size], raw.tell()
    except errors as error:
        raise UserError(f"{str(file)!r} cannot be read ({error})", "input") from error


def _pieces(raw: BinaryIO, opener: Callable[[BinaryIO, str], Any] | None) -> Iterator[bytes]:
    stream = opener(raw, "rb") if opener else raw
    while piece := stream.read(READ):
        yield piece


def _zstd(raw: BinaryIO) -> Iterator[bytes]:
    """All frames; the library's own reader takes a file that was cut short for a whole one."""
    decompressor = optional("zstandard").ZstdDecompressor()
    frame = None
    while piece := raw.read(READ):
        while piece:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(piece)
            piece = frame.unused_data
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("it ends inside a frame")


def cut(file: Path, delimiter: bytes, size: int) -> Iterator[Block]:
    """Blocks of about `size` bytes that end with a delimiter; the last ends with the file.

    Raises:
      UserError: as `chunks`, or a record of more than MAX_RECORD bytes.
    """
    waiting, length, first, position = [], 0, 1, 0
    for piece, position in chunks(file, size):
        waiting.append(piece)
        length += len(piece)
        if length < size:
            continue
        content = b"".join(waiting)
        end = content.rfind(delimiter) + len(delimiter)
        if end >= len(delimiter):
            yield Block(content[:end], first, position)
            first += content.count(delimiter, 0, end)
            waiting, length = [content[end:]], len(content) - end
        elif length > MAX_RECORD:
            raise too_long(file, first)
    if length:
        yield Block(b"".join(waiting), first, position, whole=first == 1)


def too_long(file: Path, number: int) -> UserError:
    """The error of a record that does not fit in memory."""
    return UserError(
        f"{str(file)!r}: record {number} is longer than {MAX_RECORD / 1e6:,.0f} MB: cut it",
        "input",
    )


def content(file: Path) -> tuple[bytes, int]:
    """A whole file, decompressed, and its size on disk; UserError as `cut`."""
    pieces, length = [], 0
    for piece, _ in chunks(file):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_RECORD:
            raise too_long(file, 1)
    return b"".join(pieces), size_of(file)
