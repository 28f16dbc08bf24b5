"""Files of text: UTF-8, compressed or not, plain or JSON Lines; what else they are is said."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from numcodecs.zstd import decompress  # type: ignore[import-not-found]

from rope_study.errors import UserError


def _open_zstd(stream: BinaryIO) -> io.BytesIO:
    return io.BytesIO(decompress(stream.read()))


OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd,
}  # fmt: skip
JSON_LINES = [".jsonl", ".ndjson", ".jsonlines"]
JSON_ENDINGS = [*JSON_LINES, ".json"]
TABLES = [".csv", ".tsv"]
PREPARE = "make a store of it with `python -m rope_study.prepare`"
WRITE_JSONL = 'write its texts as JSON Lines, {"text": "..."} a line'

# (offset, bytes there): what such a file is, and what helps.
FORMATS = {
    (0, b"PK\x03\x04"): "a zip archive: unpack it",
    (257, b"ustar"): "a tar archive: unpack it",
    (0, b"7z\xbc\xaf\x27\x1c"): "a 7z archive: unpack it",
    (0, b"\x04\x22\x4d\x18"): "compressed by LZ4: unpack it",
    (0, b"PAR1"): f"Parquet: {PREPARE}",
    (0, b"ARROW1"): f"Arrow: {PREPARE}",
    (0, b"\xff\xff\xff\xff"): f"Arrow: {PREPARE}",
    (0, b"\x89HDF"): f"HDF5: {WRITE_JSONL}",
    (0, b"SQLite format 3"): f"a database: {WRITE_JSONL}",
    (0, b"%PDF"): "PDF: convert it to text",
    (0, b"\x1f\x8b"): "compressed by gzip: let its name end in .gz",
    (0, b"BZh"): "compressed by bzip2: let its name end in .bz2",
    (0, b"\xfd7zXZ"): "compressed by xz: let its name end in .xz",
    (0, b"\x28\xb5\x2f\xfd"): "compressed by zstd: let its name end in .zst",
    (0, b"\xff\xfe"): "UTF-16: convert it to UTF-8",
    (0, b"\xfe\xff"): "UTF-16: convert it to UTF-8",
}


def ending(file: Path) -> str:
    """What the content is, compressed or not: '.jsonl' for a.jsonl and a.jsonl.gz."""
    inner = file.stem if file.suffix.lower() in OPENERS else file.name
    return Path(inner).suffix.lower()


def read_text(file: Path) -> str:
    """The content of a UTF-8 file, compressed or not.

    Raises:
      UserError: it cannot be read, or is something else: what, if that is known.
    """
    if ending(file) in TABLES:
        raise UserError(f"{str(file)!r} is a table: {WRITE_JSONL}", "path")
    try:
        with file.open("rb") as stream:
            uncompress = OPENERS.get(file.suffix.lower())
            content = (uncompress(stream) if uncompress else stream).read()
    except (OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{str(file)!r} cannot be read ({error})", "path") from error
    for (offset, start), what in FORMATS.items():
        if content[offset:].startswith(start):
            raise UserError(f"{str(file)!r} is no text but {what}", "path")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(file)!r} is not UTF-8 text: wrong byte at offset {error.start}", "path"
        ) from error
    # As Python's own text mode: a byte order mark and the kind of line ends are not content.
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def json_rows(content: str, file: Path) -> Iterator[tuple[str, dict]]:
    """(place in the file, object) of each object of JSON Lines; "text" is a string in all.

    A .json may also be one list of them, or one object over several lines.
    """
    if ending(file) == ".json" and (whole := _whole(content)) is not None:
        rows = ((f"item {i}", row) for i, row in enumerate(whole, start=1))
    else:
        # Not splitlines(): a JSON string may hold U+2028 and the like.
        lines = enumerate(content.split("\n"), start=1)
        rows = ((f"line {number}", line) for number, line in lines if line.strip())
    for place, row in rows:
        try:
            row = json.loads(row) if isinstance(row, str) else row
            row["text"].encode()  # an escaped lone surrogate would fail later, far from its line
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'{str(file)!r}, {place}: not of the form {{"text": "..."}}'
                f" ({type(error).__name__}: {error})",
                "path",
            ) from error
        yield place, row


def _whole(content: str) -> list | None:
    """The objects of a text that is one JSON value; None where each line is one."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]
