"""The axes that the datasets of probes share: layers, heads, rotary pairs; and their units."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray

from rope_study import rotary
from rope_study.decoder import DecoderConfig
from rope_study.errors import UserError

BY_HEAD = ("layer", "head")
BY_KV_HEAD = ("layer", "kv_head")
QUANTITIES = {"q": "queries", "k": "keys", "v": "values"}


# --- what others take ---------------------------------------------------------------------------


class Made(NamedTuple):
    """What is read of data: variables with their axes ("": an array itself), and attributes."""

    variables: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]


SOURCE, OF_A_HEAD = ("model", "tokens", "context"), ("layer", "head")
USAGE = {
    "q": (*BY_HEAD, "pair"),
    "k": (*BY_KV_HEAD, "pair"),
    "v": (*BY_KV_HEAD, "pair"),
    "inverse_frequency": ("layer", "pair"),
}
BY_LENGTH, BY_POSITION = ("rotary", "length"), ("rotary", "length", "position")
LOSSES = {
    **dict.fromkeys(("loss", "loss_interval", "difference", "difference_interval"), BY_LENGTH),
    **dict.fromkeys(("position_loss", "position_loss_interval"), BY_POSITION),
    "position_first": ("position",),
}
PATTERNS = {name: BY_HEAD for name in ("first", "delimiter", "selective", "by_distance")}
OVER_STEPS = {
    "q": ("step", *BY_HEAD, "pair"),
    "k": ("step", *BY_KV_HEAD, "pair"),
    "kind": ("layer",),
}
MADE_BY = {
    "a run with train.probe_every": Made(OVER_STEPS, (*SOURCE, "text")),
    "probes.frequency_usage": Made(USAGE, (*SOURCE, "text")),
    "probes.head_patterns": Made({**PATTERNS, "offset_mass": (*BY_HEAD, "offset")}, ()),
    "probes.name_heads": Made({"name": BY_HEAD, "score": BY_HEAD}, ()),
    "probes.attention_map": Made({"": ("query", "key")}, OF_A_HEAD),
    "probes.contribution_map": Made(
        {"": ("query", "key", "pair"), "inverse_frequency": ("pair",)}, OF_A_HEAD
    ),
    "probes.contributions": Made(
        {name: ("pair",) for name in ("contribution", "bound", "inverse_frequency")},
        (*OF_A_HEAD, "query", "key", "logit", "logit_bound"),
    ),
    "training.evaluate_documents": Made(LOSSES, (*SOURCE, "text", "documents", "across")),
    "interventions.measure": Made(
        {name: ("intervention",) for name in ("loss_difference", "loss_difference_se")},
        (*SOURCE, "texts"),
    ),
}


def check_made_by(maker: str, *given: Any, drawn: bool = True) -> None:
    """Refuses what is not data as that function gives, or has nothing along an axis.

    Attributes are asked for where it is drawn only, as arithmetic with xarray drops them.

    Raises:
      UserError: naming what is missing.
    """
    variables, names = MADE_BY[maker]
    remedy = f"give what {maker} gives"
    if not given:
        raise UserError("there is nothing to draw", remedy=remedy)
    for data in given:
        known = {"": data, **getattr(data, "coords", {}), **getattr(data, "data_vars", {})}
        for name, axes in variables.items():
            there = known.get(name)
            sizes = there.sizes if isinstance(there, xarray.DataArray) else {}
            if tuple(sizes) != axes or not all(sizes.values()):
                found = ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "none"
                raise UserError(
                    f"{name or 'an array'} by {', '.join(axes)} is needed, and there is {found}",
                    remedy=remedy,
                )
        if drawn and (missing := [name for name in names if name not in data.attrs]):
            raise UserError(f"the attribute {missing[0]!r} is missing", remedy=remedy)


# --- how they are made --------------------------------------------------------------------------


def variable(dims: tuple[str, ...], layers: list, long_name: str, units: str = "1") -> tuple:
    """What xarray.Dataset takes for a variable with one array a layer, dims[1:]."""
    return dims, stack_padded([np.asarray(layer) for layer in layers]), attributes(long_name, units)


def attributes(long_name: str, units: str = "1") -> dict[str, str]:
    """Of a variable."""
    return {"units": units, "long_name": long_name}


FREQUENCY = attributes("turn a token; 0: not rotated", "rad/token")


def stack_padded(layers: list[np.ndarray]) -> np.ndarray:
    """One array [L, ...]; layers with fewer heads or pairs than the largest end in NaN."""
    largest = np.max([layer.shape for layer in layers], axis=0)
    stacked = np.full((len(layers), *largest), np.nan)
    for i, layer in enumerate(layers):
        stacked[(i, *(slice(size) for size in layer.shape))] = layer
    return stacked


def number_axes(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset with 0, 1, 2, ... along every axis that has no coordinate yet."""
    sizes = dataset.sizes.items()
    return dataset.assign_coords(
        {axis: np.arange(size) for axis, size in sizes if axis not in dataset.coords}
    )


def frequency_coordinates(config: DecoderConfig, context: int) -> dict[str, tuple]:
    """inverse_frequency and cycles by layer and pair, fastest first."""
    by_layer = [
        inverse_frequencies(spec.rotary, config.of_layer(spec).head_dim)
        for spec in config.layer_specs
    ]
    dims, frequencies = ("layer", "pair"), stack_padded(by_layer)
    cycles = frequencies * context / (2 * np.pi)
    return {
        "inverse_frequency": (dims, frequencies, FREQUENCY),
        "cycles": (dims, cycles, attributes("turns over the context")),
    }


def with_trained_frequencies(config: DecoderConfig, params: Mapping[str, Any]) -> DecoderConfig:
    """The same decoder to read frequencies from: those that were learned as they are in params."""

    def pinned(encoding: rotary.Rotary) -> rotary.Rotary:
        learned = isinstance(encoding, rotary.LearnedRope)
        return encoding.pinned(params["shared"]) if learned else encoding

    pattern = tuple(
        dataclasses.replace(spec, rotary=pinned(spec.rotary)) for spec in config.pattern
    )
    return dataclasses.replace(config, pattern=pattern)


def inverse_frequencies(encoding: rotary.Rotary, head_dim: int) -> np.ndarray:
    """float64[H/2]; NaN where they are not known: a function of the user's own, or of arrays.

    See `with_trained_frequencies` for learned ones.
    """
    if isinstance(encoding, rotary.Encoding) and not encoding.trained:
        return encoding.inverse_frequencies(head_dim)
    return np.full(head_dim // 2, np.nan)
