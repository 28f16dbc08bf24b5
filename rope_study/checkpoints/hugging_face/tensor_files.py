"""Named tensors in a folder of safetensors files, read one part at a time."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rope_study.errors import UserError, nearest

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ENDING = ".safetensors"
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# A part is copied in blocks of this many bytes of file, so that what the library maps and copies
# while it reads stays this small, however large the tensor is.
BLOCK_BYTES = 4 * 2**20

# bf16 is no type of NumPy itself; importing ml_dtypes is what lets the library find it by name.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where a tensor is and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of one .safetensors file, or of a folder that holds one or several with an index.

    Opening reads headers only. No file stays open or mapped between reads.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a .safetensors file, or a folder as Hugging Face lays it out.

        Args:
          path: the file; or a folder, in which model.safetensors is looked for, then
            model.safetensors.index.json with its shards, then a single *.safetensors.

        Raises:
          UserError: nothing of that kind there, a file missing, cut off or corrupt, or an index
            that does not agree with its shards.
        """
        self._path = Path(path).expanduser()
        self._entries = _open(self._path)

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; UserError if there is none of that name."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """What `read` gives; UserError if there is none of that name, or NumPy has no such type."""
        entry = self._entry(name)
        if entry.dtype not in DTYPES:
            raise UserError(
                f"tensor {name!r} in {entry.file} is of type {entry.dtype}, which is not read;"
                f" allowed: {', '.join(DTYPES)}; save it as one of them, such as BF16"
            )
        return DTYPES[entry.dtype]

    def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
        """The part of a tensor that index selects, copied from disk; nothing else is read.

        Args:
          name: of the tensor.
          index: slices with step 1, one for each axis from the first; axes left out are whole.

        Returns:
          The same as tensor[tuple(index)] of NumPy.

        Raises:
          UserError: no such tensor, an index that does not fit, or a file that has changed.
        """
        entry, dtype = self._entry(name), self.dtype(name)
        bounds = _bounds(index, entry.shape, name)
        part = np.empty([stop - start for start, stop in bounds], dtype)
        for block in _blocks(bounds, entry.shape, dtype.itemsize):
            inside = tuple(
                slice(first - start, last - start)
                for (first, last), (start, _) in zip(block, bounds, strict=True)
            )
            part[inside] = _read_block(entry.file, name, block)
        return part

    def where(self, name: str) -> Path:
        """The file that holds a tensor, or that should: the only one, or the folder; for errors."""
        if name in self._entries:
            return self._entries[name].file
        files = {entry.file for entry in self._entries.values()}
        return files.pop() if len(files) == 1 else self._path

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise UserError(
                f"no tensor {name!r} among the {len(self._entries)} in {self._path}"
                f".{nearest(str(name), self._entries)}"
            )
        return self._entries[name]


# --- parts ------------------------------------------------------------------------------------


def _bounds(index: Sequence[slice], shape: tuple[int, ...], name: str) -> list[tuple[int, int]]:
    """(start, stop) on every axis, 0 <= start <= stop <= length."""
    slices = isinstance(index, tuple | list) and all(isinstance(i, slice) for i in index)
    if not slices or len(index) > len(shape) or any(i.step not in (None, 1) for i in index):
        raise UserError(
            f"index={index!r} does not fit tensor {name!r} of shape {shape}: give a tuple of at"
            f" most {len(shape)} slices with step 1"
        )
    whole = [slice(None)] * (len(shape) - len(index))
    ends = [i.indices(n)[:2] for i, n in zip([*index, *whole], shape, strict=True)]
    return [(start, max(start, stop)) for start, stop in ends]


def _blocks(
    bounds: list[tuple[int, int]], shape: tuple[int, ...], itemsize: int
) -> Iterator[list[tuple[int, int]]]:
    """Bounds of consecutive runs in the file of about BLOCK_BYTES, together the whole part."""
    lengths = [stop - start for start, stop in bounds]
    if not all(lengths):
        return
    # Axes of length 1 in front do not interrupt a run: one expert of [experts, rows, columns].
    axis = next((axis for axis, length in enumerate(lengths) if length > 1), None)
    if axis is None:
        yield bounds
        return
    start, stop = bounds[axis]
    # Pages are mapped whole, so a row counts with the columns that are not wanted.
    rows = max(1, BLOCK_BYTES // (math.prod(shape[axis + 1 :]) * itemsize))
    for first in range(start, stop, rows):
        yield [*bounds[:axis], (first, min(first + rows, stop)), *bounds[axis + 1 :]]


def _read_block(file: Path, name: str, block: list[tuple[int, int]]) -> np.ndarray:
    # Opened anew each time: a file that stays open keeps every page it has read in memory.
    with _opened(file) as handle:
        try:
            if not block:
                return handle.get_tensor(name)
            return handle.get_slice(name)[tuple(slice(*ends) for ends in block)]
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"tensor {name!r} can no longer be read from {file} ({error}): the file has"
                " changed since it was opened; open it again"
            ) from error


# --- files ------------------------------------------------------------------------------------


def _open(path: Path) -> dict[str, _Entry]:
    if path.is_file():
        if path.suffix != ENDING:
            raise UserError(f"{path} is not a {ENDING} file{_pickles([path])}; give one")
        return _read_header(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a folder of {ENDING} files, or one of them")
    if (path / SINGLE_FILE).is_file():
        return _read_header(path / SINGLE_FILE)
    if (path / INDEX_FILE).is_file():
        return _read_shards(path, path / INDEX_FILE)
    return _read_header(_only_file(path))


def _only_file(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix == ENDING)
    if not files:
        raise UserError(
            f"{folder} holds no {ENDING} file{_pickles(sorted(folder.iterdir()))}; give a folder"
            f" with {SINGLE_FILE}, or {INDEX_FILE} and its shards"
        )
    if len(files) > 1 or re.search(r"-of-0*(?!1\.)[1-9]\d*\.", files[0].name):
        raise UserError(
            f"{folder} holds {', '.join(file.name for file in files)} and no {INDEX_FILE} that"
            " says which belong together: copy it here too, or give the path of one file"
        )
    return files[0]


def _pickles(files: list[Path]) -> str:
    names = [file.name for file in files if file.suffix in PICKLE_ENDINGS]
    if not names:
        return ""
    return (
        f" but {', '.join(names)}, and pickle files are refused because loading one can run any"
        " code it holds: convert it to safetensors where you trust it"
    )


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}{_size(file)} is cut off, corrupt or no safetensors file ({error});"
            " copy or download it again"
        ) from error


def _size(file: Path) -> str:
    return f" of {file.stat().st_size:,} bytes" if file.is_file() else ""


def _read_header(file: Path) -> dict[str, _Entry]:
    entries = {}
    with _opened(file) as handle:
        for name in handle.keys():
            tensor = handle.get_slice(name)
            entries[name] = _Entry(file, tuple(tensor.get_shape()), tensor.get_dtype())
    return entries


# --- shards -----------------------------------------------------------------------------------


def _read_shards(folder: Path, index: Path) -> dict[str, _Entry]:
    weight_map = _read_index(index)
    entries: dict[str, _Entry] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            name = next(name for name, file in weight_map.items() if file == shard)
            raise UserError(
                f"{folder / shard} is missing or a broken link, and {index} lists it, for tensor"
                f" {name!r} among others; copy or download it again"
            )
        header = _read_header(folder / shard)
        for name in sorted(entries.keys() & header.keys()):
            raise _disagreement(
                index, name, f"is in two shards, {entries[name].file.name} and {shard}"
            )
        entries |= header
    for name in sorted(weight_map.keys() | entries.keys()):
        _check_agrees(index, name, weight_map.get(name), entries.get(name))
    return entries


def _check_agrees(index: Path, name: str, shard: str | None, entry: _Entry | None) -> None:
    if shard is None:
        raise _disagreement(index, name, f"is in {entry.file.name} and not in the index")
    if entry is None or entry.file.name != shard:
        found = f", but {entry.file.name} does" if entry else ""
        raise _disagreement(index, name, f"should be in {shard}, which does not have it{found}")


def _disagreement(index: Path, name: str, problem: str) -> UserError:
    return UserError(
        f"tensor {name!r} {problem}: {index} and its shards are not of one save; copy or download"
        " the folder again"
    )


def _read_index(file: Path) -> dict[str, str]:
    """{tensor: file name of its shard}, all of them names inside the folder."""
    try:
        weight_map = json.loads(file.read_bytes())["weight_map"]
        shards = list(weight_map.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{file} is not an index, {{"weight_map": {{tensor: file}}}}'
            f" ({type(error).__name__}: {error}); copy or download it again"
        ) from error
    for name, shard in weight_map.items():
        # The file itself may be a link that leads elsewhere: that is how Hugging Face's cache
        # stores every file. Only the index, which came from someone else, must not choose paths.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
            raise UserError(
                f"{file} places tensor {name!r} in {shard!r}: only the name of a {ENDING} file in"
                " the same folder is allowed, without any path"
            )
    if not shards:
        raise UserError(f"{file} lists no tensors; copy or download it again")
    return weight_map
