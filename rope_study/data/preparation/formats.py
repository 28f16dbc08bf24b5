"""What is read: by the ending of a file, how it is cut into blocks, and a block into records."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rope_study.data.preparation import wikipedia
from rope_study.data.preparation.records import Options, Record, Skipped
from rope_study.data.preparation.streams import (
    MAX_RECORD,
    Block,
    chunks,
    content,
    cut,
    optional,
    too_long,
)
from rope_study.data.text_files import FORMATS as OTHER_FORMATS
from rope_study.data.text_files import JSON_LINES, TABLES, WRITE_JSONL, ending
from rope_study.errors import UserError
from rope_study.files.paths import local_copy, size_of

TOKEN_TYPES = ("uint16", "uint32", "int32")
ROWS = 256  # of an ArrayRecord file at a time


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
      name: for errors.
      blocks: cuts a file, in the process that reads.
      records: reads a block, in a worker.
    """

    name: str
    blocks: Callable[[Path, Options], Iterator[Block]]
    records: Callable[[Block, Options], Iterator[Record]]


def format_of(file: Path) -> Format:
    """By the ending under any compression; what is unknown is plain text.

    Raises:
      UserError: a table of text.
    """
    if ending(file) in TABLES:
        raise UserError(f"{str(file)!r} is a table: {WRITE_JSONL}", "input")
    return FORMATS.get(ending(file), TEXT)


# --- text -------------------------------------------------------------------------------------


def _text_blocks(file: Path, _: Options) -> Iterator[Block]:
    text, position = content(file)
    _refuse_other_formats(text, file)
    yield Block(text, 1, position, whole=True)


def _text_records(block: Block, _: Options) -> Iterator[Record]:
    try:
        text = block.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Skipped("not UTF-8", 1, f"not UTF-8: wrong byte at offset {error.start}")
    else:
        yield text.replace("\r\n", "\n")


def _refuse_other_formats(start: bytes, file: Path) -> None:
    for (offset, magic), what in OTHER_FORMATS.items():
        if start[offset:].startswith(magic):
            raise UserError(f"{str(file)!r} is no text but {what}", "input")


# --- JSON -------------------------------------------------------------------------------------


def _json_blocks(file: Path, options: Options) -> Iterator[Block]:
    for i, block in enumerate(cut(file, b"\n", options.block)):
        if not i:
            _refuse_other_formats(block.content, file)
            if ending(file) == ".json" and block.content.lstrip()[:1] == b"[":
                break
        yield block
    else:
        return
    whole, position = content(file)  # one list, which has to be read at once
    yield Block(whole, 1, position, whole=True)


def _json_records(block: Block, options: Options) -> Iterator[Record]:
    """Rows of JSON Lines; a file that is one value may be a list of them, or one of many lines."""
    rows = _whole(block.content) if block.whole else None
    if rows is not None:
        for number, row in enumerate(rows, 1):
            yield _json_record(row, number, options)
        return
    for number, line in enumerate(block.content.split(b"\n"), block.first):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Skipped("not JSON", number, f"not JSON ({type(error).__name__}: {error})")
            else:
                yield _json_record(row, number, options)


def _whole(text: bytes) -> list | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


def _json_record(row: Any, number: int, options: Options) -> Record:
    if not isinstance(row, dict):
        return Skipped("no field", number, f"a {type(row).__name__}, no object")
    for field in options.fields:
        if field not in row:
            return Skipped("no field", number, f"no field {field!r}; it has {', '.join(row)}")
    return as_record([row[field] for field in options.fields], number, options.fields)


def as_record(values: Sequence[Any], number: int, fields: Sequence[str]) -> Record:
    """The text, or inputs and targets, of a row."""
    for field, value in zip(fields, values, strict=True):
        if value is None:
            return Skipped("empty", number)
        if not isinstance(value, str):
            kind = type(value).__name__
            return Skipped("no text", number, f"field {field!r} is of type {kind}, no text")
        try:
            value.encode()
        except UnicodeEncodeError:
            return Skipped("not UTF-8", number, f"field {field!r} has a lone surrogate")
    return values[0] if len(values) == 1 else (values[0], values[1])


# --- Parquet and Arrow ------------------------------------------------------------------------


def _parquet_batches(stream: Any, options: Options) -> Iterator[Any]:
    parquet = optional("pyarrow.parquet").ParquetFile(stream)
    _check_columns(parquet.schema_arrow.names, options.fields)
    yield from parquet.iter_batches(ROWS, columns=list(options.fields))


def _arrow_batches(stream: Any, options: Options) -> Iterator[Any]:
    """Of a file with an index, such as Feather, or of a stream without."""
    arrow = optional("pyarrow")
    try:
        reader: Any = arrow.ipc.open_file(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    except arrow.ArrowInvalid:
        stream.seek(0)
        batches = reader = arrow.ipc.open_stream(stream)
    _check_columns(reader.schema.names, options.fields)
    yield from batches


def _check_columns(names: Sequence[str], fields: Sequence[str]) -> None:
    if missing := [field for field in fields if field not in names]:
        raise UserError(f"no column {missing[0]!r}; there are {', '.join(names)}", "field")


def _table_blocks(batches: Callable[[Any, Options], Iterator[Any]]) -> Callable:
    def blocks(file: Path, options: Options) -> Iterator[Block]:
        first = 1
        try:
            with file.open("rb") as stream:
                for batch in batches(stream, options):
                    rows = max(1, int(options.block * len(batch) / max(batch.nbytes, 1)))
                    for start in range(0, len(batch), rows):
                        part = batch.select(list(options.fields)).slice(start, rows)
                        yield Block(part, first + start, min(stream.tell(), size_of(file)))
                    first += len(batch)
        except UserError as error:
            raise UserError(f"{str(file)!r}: {error.problem}", error.argument) from error
        except (OSError, optional("pyarrow").ArrowException) as error:
            raise UserError(f"{str(file)!r} cannot be read ({error})", "input") from error

    return blocks


def _table_records(block: Block, options: Options) -> Iterator[Record]:
    columns = [block.content.column(field) for field in options.fields]
    for i, scalars in enumerate(zip(*columns, strict=True)):
        try:
            values = [scalar.as_py() for scalar in scalars]
        except UnicodeDecodeError:
            yield Skipped("not UTF-8", block.first + i, "not UTF-8")
        else:
            yield as_record(values, block.first + i, options.fields)


# --- tokens -----------------------------------------------------------------------------------


def _token_blocks(file: Path, options: Options) -> Iterator[Block]:
    if options.token_dtype is None:
        raise UserError(
            f"{str(file)!r} holds tokens, of what type cannot be seen: one of"
            f" {', '.join(TOKEN_TYPES)}",
            "token_dtype",
        )
    dtype = np.dtype(options.token_dtype).newbyteorder("<")
    waiting, first, position = b"", 1, 0
    for piece, position in chunks(file, options.block):
        waiting += piece
        if len(waiting) < options.block:
            continue
        ids = np.frombuffer(waiting, dtype, len(waiting) // dtype.itemsize)
        begins = np.flatnonzero(ids[1:] == options.separator) + 1
        if len(begins):
            yield Block(ids[: begins[-1]], first, position)
            first += len(begins)
            waiting = waiting[begins[-1] * dtype.itemsize :]
        elif len(waiting) > MAX_RECORD:
            raise too_long(file, first)
    if len(waiting) % dtype.itemsize:
        problem = f"{str(file)!r} is cut short: it ends inside a token of {dtype.itemsize} bytes"
        raise UserError(problem, "input")
    if waiting:
        yield Block(np.frombuffer(waiting, dtype), first, position)


def _token_records(block: Block, options: Options) -> Iterator[Record]:
    yield from _documents(block.content, block.first, options)


def _row_blocks(file: Path, _: Options) -> Iterator[Block]:
    arrays = optional("array_record.python.array_record_module")
    try:
        reader = arrays.ArrayRecordReader(str(local_copy(file)))
        if not reader.ok():  # it gives no records then, and no error
            raise ValueError("it is damaged, or no ArrayRecord")
        count = reader.num_records()
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            position = size_of(file) * stop // count
            yield Block(reader.read(start, stop), start + 1, position)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{str(file)!r} cannot be read ({error})", "input") from error


def _row_records(block: Block, options: Options) -> Iterator[Record]:
    for number, row in enumerate(block.content, block.first):
        if len(row) % 4:
            yield Skipped("no int32", number, f"{len(row)} bytes are no row of int32")
        else:
            yield from _documents(np.frombuffer(row, "<i4"), number, options)


def _documents(ids: np.ndarray, first: int, options: Options) -> Iterator[Record]:
    """Ids [n] between separators; UserError where they are of another tokenizer."""
    if len(ids) and not (0 <= ids.min() and ids.max() < options.vocab_size):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(
            f"document {first} or one soon after it has id {wrong}, the tokenizer has"
            f" 0..{options.vocab_size - 1}: the tokens are of another one, or of another type",
            "tokenizer",
        )
    for document in np.split(ids, np.flatnonzero(ids == options.separator)):
        document = document[document != options.separator]
        if len(document):
            yield document


TEXT = Format("text", _text_blocks, _text_records)
JSON = Format("JSON Lines", _json_blocks, _json_records)
WIKIPEDIA = Format("a Wikipedia dump", wikipedia.blocks, wikipedia.records)
PARQUET = Format("Parquet", _table_blocks(_parquet_batches), _table_records)
ARROW = Format("Arrow", _table_blocks(_arrow_batches), _table_records)
FLAT = Format("flat tokens", _token_blocks, _token_records)
ARRAY_RECORD = Format("ArrayRecord", _row_blocks, _row_records)

FORMATS = {
    **dict.fromkeys([*JSON_LINES, ".json"], JSON),
    ".xml": WIKIPEDIA,
    ".parquet": PARQUET,
    **dict.fromkeys([".arrow", ".feather"], ARROW),
    ".bin": FLAT,
    **dict.fromkeys([".array_record", ".arrayrecord", ".arecord"], ARRAY_RECORD),
}
