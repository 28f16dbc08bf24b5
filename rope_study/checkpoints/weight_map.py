"""Where the decoder's arrays are in a checkpoint of another format, and in which order of axes."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from rope_study import rotary
from rope_study.decoder import DecoderConfig
from rope_study.decoder.layer import layer_parameters, shared_parameters
from rope_study.errors import UserError

Path = tuple[str, ...]  # of an array in the parameters: ("pattern_0", "q") or ("embedding",)


class Reader(Protocol):
    """Named arrays of a checkpoint, read one at a time."""

    names: list[str]

    def shape(self, name: str) -> tuple[int, ...]:
        """The array's shape, without reading it."""

    def dtype(self, name: str) -> np.dtype:
        """The array's type, without reading it."""

    def read(self, name: str) -> np.ndarray:
        """The array."""

    def where(self, name: str) -> os.PathLike:
        """The file that has it, for errors."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One array of the decoder as a checkpoint has it.

    Attributes:
      name: the checkpoint's; "{i}" stands for the layer.
      ours: our axes, a letter each: "dnh".
      theirs: theirs, those that run together in one string: ("nh", "d").
      part: index into axes that come before `theirs`, where one array holds several of ours.
      layout: how theirs pairs the dimensions of a head (see rotary.convert_layout).
    """

    name: str
    ours: str
    theirs: tuple[str, ...]
    part: tuple[int | str, ...] = ()
    layout: str = "half_split"

    def of_layer(self, i: int) -> "Stored":
        """The same for layer i; a part written "i" is the layer's number."""
        part = tuple(i if p == "i" else p for p in self.part)
        return dataclasses.replace(self, name=self.name.format(i=i), part=part)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of theirs, without the axes of `part`, for ours."""
        sizes = dict(zip(self.ours, shape, strict=True))
        return tuple(int(np.prod([sizes[a] for a in axes])) for axes in self.theirs)

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their array with its axes as ours; a view where that is possible."""
        sizes, order = dict(zip(self.ours, shape, strict=True)), "".join(self.theirs)
        array = array[self.part].reshape([sizes[a] for a in order])
        array = array.transpose([order.index(a) for a in self.ours])
        return rotary.convert_layout(array, self.layout, "half_split")

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array with its axes as theirs; for arrays that hold one of ours."""
        array = rotary.convert_layout(array, "half_split", self.layout)
        order = "".join(self.theirs)
        return array.transpose([self.ours.index(a) for a in order]).reshape(
            self.their_shape(array.shape)
        )


Located = dict[Path, list[Stored]]  # one place, or one for each repeat of the pattern


@dataclasses.dataclass(frozen=True)
class Released:
    """A checkpoint of another format, of which only names and shapes are read.

    Attributes:
      name: for the progress bar.
      config: the decoder that it holds.
      locate: where the arrays of a decoder are in it.
      reader: reads them.
      ignored: matches names that are right to leave out.
    """

    name: str
    config: DecoderConfig
    locate: Callable[[DecoderConfig], Located]
    reader: Reader
    ignored: re.Pattern | None = None


def locate(
    config: DecoderConfig, top: Mapping[str, Stored], of_layer: Mapping[str, Stored]
) -> Located:
    """Where every array of the decoder is.

    Raises:
      UserError: the decoder has an array that this format has no name for.
    """
    found = {}
    if shared_parameters(config):
        raise UserError(f"arrays shared by layers are not in this format: {config.pattern}")
    for name in top_names(config):
        found[name,] = [_named(top, name)]
    for group, place, layers in config.layer_groups:
        for name in layer_parameters(config, config.pattern[place]):
            stored = _named(of_layer, name)
            found[group, name] = [stored.of_layer(i) for i in layers]
    return found


def top_names(config: DecoderConfig) -> list[str]:
    """The arrays that belong to no layer."""
    names = ["embedding", "final_norm"]
    if not config.tied:
        names.append("unembedding")
    if config.per_layer_dim:
        names += ["per_layer_embedding", "per_layer_projection", "per_layer_projection_norm"]
    return names


def _named(table: Mapping[str, Stored], name: str) -> Stored:
    if name not in table:
        raise UserError(
            f"this format has no name for the array {name!r}; it has {', '.join(table)}"
        )
    return table[name]
