"""The tensors of a GGUF file as Transformers has them: dequantised, one at a time."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from rope_study.checkpoints.weight_map import Index
from rope_study.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a tensor that holds several arrays one below the other."""

    name: str
    start: int
    stop: int


class DequantisedTensors:
    """A Reader of float32 arrays, of which only the rows asked for are dequantised."""

    def __init__(
        self,
        file: Path,
        tensors: Mapping[str, gguf.ReaderTensor],
        rows: Mapping[str, Rows],
        norm_offset: float,
    ):
        """Nothing is read.

        Args:
          file: for errors.
          tensors: by name.
          rows: names of our own for parts of tensors.
          norm_offset: what the file has added to the weights of norms.
        """
        self._file, self._tensors, self._rows = file, tensors, rows
        self._norm_offset = norm_offset
        fused = {part.name for part in rows.values()}
        self.names = sorted((tensors.keys() - fused) | rows.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, without reading it."""
        part = self._part(name)
        stored = self._tensors[part.name].shape.tolist()[::-1]  # GGUF's last axis is the first
        return part.stop - part.start, *stored[1:]

    def dtype(self, name: str) -> np.dtype:
        """What `read` gives, whatever is stored."""
        return np.dtype(np.float32)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """array[index]; UserError where it has infinities or NaN."""
        part = self._part(name)
        tensor = self._tensors[part.name]
        rows = tensor.data[part.start : part.stop][index[:1]]
        array = gguf.dequantize(rows, tensor.tensor_type)[(slice(None), *index[1:])]
        if not np.isfinite(array).all():
            raise UserError(f"{self._file}: tensor {name!r} has infinities or NaN; it is damaged")
        return array - self._norm_offset if name.endswith("norm.weight") else array

    def where(self, name: str) -> Path:
        """The file, for errors."""
        return self._file

    def _part(self, name: str) -> Rows:
        if name in self._rows:
            return self._rows[name]
        return Rows(name, 0, int(self._tensors[name].shape[-1]))
