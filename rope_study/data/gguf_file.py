"""GGUF, the files of llama.cpp: metadata by key and tensors, read by the package gguf.

Tensors are mapped from disk: opening reads the metadata and where they are.
"""

import functools
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rope_study.errors import UserError
from rope_study.files.paths import local_copy, to_path

ENDING = ".gguf"


class GGUFFile:
    """One open file.

    Attributes:
      file: its path.
      tensors: by name; all can be dequantised.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a file, or the only *.gguf of a folder.

        Raises:
          UserError: none there or several, another kind of file, one that is cut off or one of
            several parts, or a tensor of a quantisation that is not read.
        """
        self.file = find(path)
        self._fields, tensors = _read(self.file)
        self.tensors: dict[str, gguf.ReaderTensor] = {tensor.name: tensor for tensor in tensors}
        for tensor in tensors:
            if not _is_readable(tensor.tensor_type):
                raise UserError(
                    f"{self.file}: tensor {tensor.name!r} is of type {tensor.tensor_type.name},"
                    " which is not read; quantise it as another, such as Q8_0"
                )
        if self.value("split.count", 1) > 1:
            raise UserError(
                f"{self.file} is one of {self.value('split.count')} parts: join them with"
                " llama-gguf-split --merge"
            )

    def value(self, key: str, default: Any = None) -> Any:
        """What the metadata has under a key: a number, a string or a list.

        Raises:
          UserError: a string that is not UTF-8.
        """
        field = self._fields.get(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.file} is damaged: {key} is not UTF-8 ({error}); copy or download it again"
            ) from error

    def required(self, key: str) -> Any:
        """The same; UserError where the file does not say."""
        if key not in self._fields:
            raise UserError(f"{self.file}: the metadata has no {key}")
        return self.value(key)

    @property
    def keys(self) -> list[str]:
        """Of the metadata."""
        return list(self._fields)


def find(path: str | os.PathLike) -> Path:
    """The file at a path, or the only one in a folder; UserError for none or several."""
    path = to_path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} does not exist: give a {ENDING} file")
        return path
    files = sorted(path.glob(f"*{ENDING}"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{path} holds {names or f'no {ENDING} file'}: give the path of one file")
    return files[0]


class _Reader(gguf.GGUFReader):
    """The package's reader, which names the tensor that something is wrong with."""

    def __init__(self, file: Path):
        self._file = file
        super().__init__(file)

    @property
    def data(self) -> np.ndarray:
        """The file's bytes; of a plain array, because each slice of a memmap takes long."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._bytes = np.asarray(mapped)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        tensors: dict[str, gguf.ReaderTensor] = {}
        for field in fields:
            try:
                super()._build_tensors(start_offs, [field])
                (tensor,) = self.tensors
            except (ValueError, KeyError, OverflowError) as error:
                raise UserError(
                    f"{self._file} of {self.data.nbytes:,} bytes: tensor {field.name!r} is cut"
                    f" off, or of a quantisation that gguf does not know ({error}); copy or"
                    " download it again"
                ) from error
            if tensor.name in tensors:
                raise UserError(f"{self._file}: tensor {tensor.name!r} is there twice")
            tensors[tensor.name] = tensor
        self.tensors = list(tensors.values())


def _read(file: Path) -> tuple[dict[str, gguf.ReaderField], list[gguf.ReaderTensor]]:
    try:
        reader = _Reader(local_copy(file))
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file} of {file.stat().st_size:,} bytes is cut off, damaged or no GGUF file"
            f" ({error}); copy or download it again"
        ) from error
    return dict(reader.fields), reader.tensors


@functools.cache
def _is_readable(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether the package dequantises it: it does not know all that it names."""
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        return gguf.dequantize(block, kind).dtype == np.float32
    except NotImplementedError:
        return False
