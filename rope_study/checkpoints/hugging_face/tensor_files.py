"""Named tensors in a folder of safetensors files, whole or in part."""

import dataclasses
import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rope_study.checkpoints.weight_map import Index
from rope_study.errors import UserError, nearest
from rope_study.files.paths import local_copy, to_path

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ENDING = ".safetensors"
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

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
class _Tensor:
    """Where a tensor is and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of one .safetensors file, or of a folder that holds one or several with an index.

    Opening reads headers only. No file stays open or mapped between reads: an open one keeps every
    page that was read in memory.
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
        self._path = to_path(path)
        self._tensors = _read_headers(self._path)

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; UserError if there is none of that name."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> np.dtype:
        """What `read` gives; UserError if there is none of that name, or NumPy has no such type."""
        tensor = self._tensor(name)
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"tensor {name!r} in {tensor.file} is of type {tensor.dtype}, which is not read;"
                f" allowed: {', '.join(DTYPES)}; save it as one of them, such as BF16"
            )
        return DTYPES[tensor.dtype]

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """tensor[index], copied from disk; nothing else is read.

        Args:
          name: of the tensor.
          index: slices with step 1, one for each axis from the first; axes left out are whole.

        Raises:
          UserError: no such tensor, or a file that has changed.
        """
        self.dtype(name)
        tensor = self._tensor(name)
        with _opened(tensor.file) as handle:
            try:
                return handle.get_slice(name)[index]
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"tensor {name!r} can no longer be read from {tensor.file} ({error}): the file"
                    " has changed since it was opened; open it again"
                ) from error

    def where(self, name: str) -> Path:
        """The file that holds a tensor, or that should: the only one, or the folder; for errors."""
        if name in self._tensors:
            return self._tensors[name].file
        files = {tensor.file for tensor in self._tensors.values()}
        return files.pop() if len(files) == 1 else self._path

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise UserError(
                f"no tensor {name!r} among the {len(self._tensors)} in {self._path}"
                f".{nearest(str(name), self._tensors)}"
            )
        return self._tensors[name]


# --- files ------------------------------------------------------------------------------------


def _read_headers(path: Path) -> dict[str, _Tensor]:
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
        return safe_open(local_copy(file), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}{_size(file)} is cut off, corrupt or no safetensors file ({error});"
            " copy or download it again"
        ) from error


def _size(file: Path) -> str:
    return f" of {file.stat().st_size:,} bytes" if file.is_file() else ""


def _read_header(file: Path) -> dict[str, _Tensor]:
    tensors = {}
    with _opened(file) as handle:
        for name in handle.keys():
            part = handle.get_slice(name)
            tensors[name] = _Tensor(file, tuple(part.get_shape()), part.get_dtype())
    return tensors


# --- shards -----------------------------------------------------------------------------------


def _read_shards(folder: Path, index: Path) -> dict[str, _Tensor]:
    shard_of = _read_index(index)
    tensors: dict[str, _Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if not (folder / shard).is_file():
            name = next(name for name, file in shard_of.items() if file == shard)
            raise UserError(
                f"{folder / shard} is missing or a broken link, and {index} lists it, for tensor"
                f" {name!r} among others; copy or download it again"
            )
        header = _read_header(folder / shard)
        for name in sorted(tensors.keys() & header.keys()):
            raise _disagreement(
                index, name, f"is in two shards, {tensors[name].file.name} and {shard}"
            )
        tensors |= header
    for name in sorted(shard_of.keys() | tensors.keys()):
        if problem := _problem(shard_of.get(name), tensors.get(name)):
            raise _disagreement(index, name, problem)
    return tensors


def _problem(shard: str | None, tensor: _Tensor | None) -> str | None:
    """How a tensor's place in the index differs from where it is."""
    if tensor is None:
        return f"should be in {shard}, which does not have it"
    if shard is None:
        return f"is in {tensor.file.name} and not in the index"
    if tensor.file.name != shard:
        return f"should be in {shard}, which does not have it, but {tensor.file.name} does"
    return None


def _disagreement(index: Path, name: str, problem: str) -> UserError:
    return UserError(
        f"tensor {name!r} {problem}: {index} and its shards are not of one save; copy or download"
        " the folder again"
    )


def _read_index(file: Path) -> dict[str, str]:
    """{tensor: file name of its shard}, all of them names inside the folder."""
    try:
        shard_of = json.loads(file.read_bytes())["weight_map"]
        shards = list(shard_of.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{file} is not an index, {{"weight_map": {{tensor: file}}}}'
            f" ({type(error).__name__}: {error}); copy or download it again"
        ) from error
    for name, shard in shard_of.items():
        # The file itself may be a link that leads elsewhere: that is how Hugging Face's cache
        # stores every file. Only the index, which came from someone else, must not choose paths.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
            raise UserError(
                f"{file} places tensor {name!r} in {shard!r}: only the name of a {ENDING} file in"
                " the same folder is allowed, without any path"
            )
    if not shards:
        raise UserError(f"{file} lists no tensors; copy or download it again")
    return shard_of
