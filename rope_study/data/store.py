"""Token stores: both sides of a text as flat files that are read in place, and one index.

    index.json       written last: counts, sizes, checksums, tokenizer, how it was made
    train.tokens     uint16[tokens], or uint32 for large vocabularies: documents after BOS, or
                     before EOS for a model without
    train.starts     uint64[documents], the token at which each begins
    train.prompts    uint32[documents], of instructions: first tokens whose loss does not count
    held_out.*       the same for what is not trained on

and the tokenizer's own file. A folder without an index is not a store, however large.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rope_study.data.batches import token_dtype
from rope_study.data.tokenizers.base import Tokenizer
from rope_study.errors import UserError
from rope_study.files import explained, read_json, write_atomically
from rope_study.files.paths import kind_of, local_copy, size_of, to_path

INDEX, JOURNAL = "index.json", "journal.jsonl"
FORMAT = 1
# Beside "tokens", whose type depends on the vocabulary.
TYPES = {"starts": np.uint64, "prompts": np.uint32}
AGAIN = "make the store again with `python -m rope_study.prepare`"

Columns = Mapping[str, np.ndarray]  # "train.tokens" -> what to append to that file


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a text.

    Attributes:
      tokens: uint16[n] or uint32[n], each document after BOS or before EOS.
      starts: uint64[documents], where in `tokens` each begins.
      prompts: uint32[documents], how many first tokens of each, after its BOS, do not count in the
        loss; None where all do.
      begun: 1 where documents begin with BOS, else 0.
    """

    tokens: np.ndarray
    starts: np.ndarray
    prompts: np.ndarray | None = None
    begun: int = 1

    def weights(self, first: int, last: int) -> np.ndarray:
        """f32[last - first]: 0 for tokens whose loss does not count, else 1."""
        weights = np.ones(last - first, np.float32)
        if self.prompts is not None:
            begin = max(int(np.searchsorted(self.starts, first, "right")) - 1, 0)
            end = int(np.searchsorted(self.starts, last))
            for document in range(begin, end):
                # BOS counts: it is how the document before it ends.
                start = int(self.starts[document]) + self.begun - first
                weights[max(start, 0) : max(start + int(self.prompts[document]), 0)] = 0
        return weights


@dataclasses.dataclass(frozen=True)
class Store:
    """A store on disk.

    Attributes:
      folder: where it lies; `load_tokenizer` of it gives its tokenizer.
      index: as `index.json` has it.
      train, held_out: memory-mapped.
    """

    folder: Path
    index: dict[str, Any]
    train: Side
    held_out: Side

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """UserError unless the tokens were made by that tokenizer."""
        made_by = self.index["tokenizer"]
        # The fingerprint does not know what ends the documents of a model without BOS.
        now = tokenizer.fingerprint, tokenizer.separator
        if now != (made_by["fingerprint"], made_by["separator"]):
            own = "bytes" if made_by["name"] == "bytes" else str(self.folder)
            raise UserError(
                f"the tokens of {self.folder} were not made by tokenizer {tokenizer.name!r}: the"
                f" store's own is {own!r}",
                "tokenizer",
            )

    def check_contents(self) -> None:
        """Reads all of it; UserError where a file differs from its checksum."""
        for name, about in self.index["files"].items():
            if checksum(self.folder / name) != about["crc32"]:
                raise UserError(f"{self.folder / name} is damaged: {AGAIN}", "path")


def holds_store(path: str | os.PathLike) -> bool:
    """Whether a path is the folder of a store, or of one that is not finished."""
    folder = to_path(path, "path")
    return bool(path) and "file" in (kind_of(folder / INDEX), kind_of(folder / JOURNAL))


def open_store(path: str | os.PathLike) -> Store:
    """The store in a folder; reads the index and looks at the sizes of the files.

    Files in a bucket are copied to this host first.

    Raises:
      UserError: it is not finished, of another version, cut short, or cannot be read.
    """
    folder = to_path(path, "path")
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} holds a store that is not finished: give the same command of `python -m"
            " rope_study.prepare` again, it goes on",
            "path",
        )
    index = read_json(folder / INDEX, ("format", "dtype", "files", "tokenizer"), AGAIN)
    if index["format"] != FORMAT:
        problem = f"{folder} is a store of format {index['format']}, known is {FORMAT}: {AGAIN}"
        raise UserError(problem, "path")
    for name, about in index["files"].items():
        with explained("path"):
            size = size_of(folder / name)
        if size != about["bytes"]:
            problem = f"{folder / name} has {size:,} bytes, the index says {about['bytes']:,}"
            raise UserError(f"{problem}: copy it again, or {AGAIN}", "path")

    def side(name: str) -> Side:
        def column(kind: str) -> np.ndarray:
            dtype = index["dtype"] if kind == "tokens" else TYPES[kind]
            return np.memmap(local_copy(folder / f"{name}.{kind}"), dtype, "r")

        prompts = column("prompts") if f"{name}.prompts" in index["files"] else None
        begun = int(index["tokenizer"]["bos"] is not None)
        return Side(column("tokens"), column("starts"), prompts, begun)

    return Store(folder, index, side("train"), side("held_out"))


def checksum(file: Path, size: int | None = None) -> int:
    """crc32 of a file, or of its first `size` bytes."""
    value, left = 0, size_of(file) if size is None else size
    with file.open("rb") as stream:
        while left and (chunk := stream.read(min(left, 2**22))):
            value, left = zlib.crc32(chunk, value), left - len(chunk)
    return value


# --- writing ----------------------------------------------------------------------------------


class Writer:
    """Appends columns to the files of a store.

    `state` is sizes and checksums so far: a Writer that is given one cuts the files back to it and
    goes on from there, and so gives the same bytes as one that was never stopped.
    """

    def __init__(self, folder: Path, dtype: Any, state: Mapping[str, Sequence[int]] | None = None):
        """Opens a folder, which is made.

        Raises:
          UserError: the files hold less than the state says, or something else.
        """
        self._folder, self._itemsize = folder, np.dtype(dtype).itemsize
        self._files: dict[str, BinaryIO] = {}
        self._state = {name: (int(size), int(crc)) for name, (size, crc) in (state or {}).items()}
        with explained("out"):
            folder.mkdir(parents=True, exist_ok=True)
            for name, (size, crc) in self._state.items():
                if checksum(folder / name, size) != crc:
                    problem = f"{folder / name} is not what was written: delete {folder} and begin"
                    raise UserError(f"{problem} again", "out")
                os.truncate(folder / name, size)

    @property
    def state(self) -> dict[str, tuple[int, int]]:
        """File -> (bytes, crc32)."""
        return dict(self._state)

    def tokens(self, side: str) -> int:
        """How many tokens a side has so far."""
        return self._state.get(f"{side}.tokens", (0, 0))[0] // self._itemsize

    def append(self, columns: Columns) -> None:
        """Appends to each file; "starts" count from the first of the tokens given with them."""
        bases = {
            name: np.uint64(self.tokens(name.removesuffix(".starts")))
            for name in columns
            if name.endswith(".starts")
        }
        for name, values in columns.items():
            values = values + bases[name] if name in bases else values
            content = np.ascontiguousarray(values).tobytes()
            if name not in self._files:
                # What a killed run wrote of a file that no state knows does not count.
                mode = "ab" if name in self._state else "wb"
                self._files[name] = (self._folder / name).open(mode)
            self._files[name].write(content)
            size, crc = self._state.get(name, (0, 0))
            self._state[name] = size + len(content), zlib.crc32(content, crc)

    def flush(self) -> None:
        """Hands all to the system, so that a killed process loses nothing."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Closes the files, on disk should the power fail."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._files.clear()


def write_index(
    folder: Path,
    files: Mapping[str, Sequence[int]],
    tokenizer: Tokenizer,
    fingerprint: str,
    **about: Any,
) -> None:
    """Makes a folder of finished files a store: copies the tokenizer, then writes the index."""
    name = tokenizer.save(folder)
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "dtype": np.dtype(token_dtype(tokenizer)).name,
        "tokenizer": {
            "name": name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "bos": tokenizer.bos,
            "separator": tokenizer.separator,
        },
        "files": {n: {"bytes": size, "crc32": crc} for n, (size, crc) in sorted(files.items())},
        **about,
    }
    write_atomically(folder / INDEX, json.dumps(index, indent=1) + "\n")
