"""The weight map: where the decoder's arrays are in a checkpoint, and in which order of axes.

An array of ours is [D, N, H], say, and the checkpoint's [N * H, D]: a TensorSpec says so, and turns
an index of ours into slices of theirs, so that a part can be read without the rest.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rope_study import rotary
from rope_study.decoder import DecoderConfig
from rope_study.decoder.layer import layer_parameters, shared_parameters
from rope_study.errors import UserError

ParameterPath = tuple[str, ...]  # ("pattern_0", "q") or ("embedding",)
Index = tuple[slice, ...]  # a slice an axis, with step 1


class Reader(Protocol):
    """Named arrays of a checkpoint, read one at a time or in part."""

    @property
    def names(self) -> Sequence[str]:
        """Names of all arrays, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The array's shape, without reading it."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """The array's type, without reading it."""
        ...

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """array[index]; axes that the index leaves out are whole."""
        ...

    def where(self, name: str) -> os.PathLike:
        """The file that has it, for errors."""
        ...


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Where one array of the decoder is in a checkpoint.

    Attributes:
      name: of the checkpoint's array; "{i}" stands for the layer.
      axes: ours, a letter each: "dnh".
      stored_axes: the checkpoint's, those that run together in one string: ("nh", "d").
      part: index into axes that come before stored_axes, where one array holds several of ours.
      layout: how the checkpoint pairs the dimensions of a head (see rotary.convert_layout).
    """

    name: str
    axes: str
    stored_axes: tuple[str, ...]
    part: tuple[int | str, ...] = ()
    layout: str = "half_split"

    def of_layer(self, i: int) -> "TensorSpec":
        """The same for layer i; a part written "i" is the layer's number."""
        part = tuple(i if place == "i" else place for place in self.part)
        return dataclasses.replace(self, name=self.name.format(i=i), part=part)

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The checkpoint's shape, without the axes of `part`, for our shape."""
        sizes = dict(zip(self.axes, shape, strict=True))
        return tuple(math.prod(sizes[axis] for axis in axes) for axes in self.stored_axes)

    def read(self, reader: Reader, shape: Sequence[int], index: Index) -> np.ndarray:
        """array[index] of our array, which has that shape; no more is read than holds it."""
        index = _bounded(index, shape)
        covering = self._covering(index, shape)
        stored = reader.read(self.name, self._stored_index(covering, shape))
        ours = self._from_stored(stored, [cut.stop - cut.start for cut in covering])
        return ours[
            tuple(
                slice(cut.start - cover.start, cut.stop - cover.start)
                for cut, cover in zip(index, covering, strict=True)
            )
        ]

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Our array with its axes as the checkpoint's; for arrays that hold one of ours."""
        array = rotary.convert_layout(array, "half_split", self.layout)
        order = "".join(self.stored_axes)
        return array.transpose([self.axes.index(axis) for axis in order]).reshape(
            self.stored_shape(array.shape)
        )

    def _covering(self, index: Index, shape: Sequence[int]) -> Index:
        """The smallest index around this one that is a box of slices in the checkpoint.

        Where axes run together only the first may be cut; nor may an axis whose order changes.
        """
        whole = {axis for axes in self.stored_axes for axis in axes[1:]}
        if self.layout != "half_split":
            whole.add(self.axes[-1])
        return tuple(
            slice(0, size) if axis in whole else cut
            for axis, size, cut in zip(self.axes, shape, index, strict=True)
        )

    def _stored_index(self, covering: Index, shape: Sequence[int]) -> Index:
        """The checkpoint's slices, those of `part` first, for one that is a box of them."""
        cuts = dict(zip(self.axes, covering, strict=True))
        sizes = dict(zip(self.axes, shape, strict=True))
        slices = [slice(int(place), int(place) + 1) for place in self.part]
        for axes in self.stored_axes:
            step = math.prod(sizes[axis] for axis in axes[1:])
            first = cuts[axes[0]]
            slices.append(slice(first.start * step, first.stop * step))
        return tuple(slices)

    def _from_stored(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The checkpoint's array with its axes as ours; a view where that is possible."""
        sizes, order = dict(zip(self.axes, shape, strict=True)), "".join(self.stored_axes)
        array = array.reshape([sizes[axis] for axis in order])
        array = array.transpose([order.index(axis) for axis in self.axes])
        return rotary.convert_layout(array, self.layout, "half_split")


def _bounded(index: Index, shape: Sequence[int]) -> Index:
    """The index with numbers for both ends of every slice."""
    return tuple(slice(*cut.indices(size)[:2]) for cut, size in zip(index, shape, strict=True))


WeightMap = dict[ParameterPath, list[TensorSpec]]  # one spec, or one for each repeat of the pattern


@dataclasses.dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint of another format, of which only names and shapes have been read.

    Attributes:
      name: for the progress bar.
      config: the decoder that it holds.
      weight_map: where the arrays of a decoder are in it.
      reader: reads them.
      ignored: matches names that are right to leave out.
    """

    name: str
    config: DecoderConfig
    weight_map: Callable[[DecoderConfig], WeightMap]
    reader: Reader
    ignored: re.Pattern | None = None


def make_weight_map(
    config: DecoderConfig, top: Mapping[str, TensorSpec], layer: Mapping[str, TensorSpec]
) -> WeightMap:
    """Where every array of the decoder is.

    Args:
      config: the decoder.
      top: the format's specs of the arrays that belong to no layer, by our name.
      layer: those of the arrays of layer {i}.

    Raises:
      UserError: the decoder has an array that this format has no name for.
    """
    if shared_parameters(config):
        raise UserError(f"arrays shared by layers are not in this format: {config.pattern}")
    weight_map: WeightMap = {(name,): [_spec(top, name)] for name in top_names(config)}
    for group, place, layers in config.layer_groups:
        for name in layer_parameters(config, config.pattern[place]):
            spec = _spec(layer, name)
            weight_map[group, name] = [spec.of_layer(i) for i in layers]
    return weight_map


def top_names(config: DecoderConfig) -> list[str]:
    """The arrays that belong to no layer."""
    names = ["embedding", "final_norm"]
    if not config.tied:
        names.append("unembedding")
    if config.per_layer_dim:
        names += ["per_layer_embedding", "per_layer_projection", "per_layer_projection_norm"]
    return names


def parameter_at(tree: Mapping[str, Any], path: ParameterPath) -> Any:
    """The leaf of nested dictionaries at a path."""
    for key in path:
        tree = tree[key]
    return tree


def _spec(table: Mapping[str, TensorSpec], name: str) -> TensorSpec:
    if name not in table:
        raise UserError(
            f"this format has no name for the array {name!r}; it has {', '.join(table)}"
        )
    return table[name]
