"""Activations of a few texts at once, for functions that look at one place in one text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rope_study.checks import check
from rope_study.decoder import Decoder, DecoderConfig, Probe
from rope_study.decoder.hooks import HOOK_POINTS
from rope_study.errors import UserError
from rope_study.probes.run import in_f32
from rope_study.sharding import Layout

Array = jax.Array


def read_activations(
    decoder: Decoder, params: dict, tokens: np.ndarray, read: Callable, *arguments: Any
) -> list[Any]:
    """What `read` takes from the activations of every layer, in f32.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokens: int[B, T].
      read: (activations, *arguments) -> a tree of arrays [B, ...]; compiled once for each function.
      arguments: arrays or numbers.

    Returns:
      One tree of NumPy arrays a layer. All layers are held: let `read` take little of long texts.
    """
    probed, layout = in_f32(decoder, params)
    rows = layout.fill(len(tokens))
    placed = layout.place(tokens[rows])
    layers = _read_activations(probed.config, layout, read, params, placed, arguments)
    return jax.tree.map(lambda a: np.asarray(a)[: len(tokens)], layers)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read_activations(
    config: DecoderConfig,
    layout: Layout,
    read: Callable,
    params: dict,
    tokens: Array,
    arguments: tuple,
) -> list[Any]:
    def measure(activations: Mapping[str, Any], weights: Array) -> Any:
        return read(activations, *arguments)

    def on_every_device(a: Array) -> Array:
        return layout.constrain(a, *[None] * a.ndim)

    probe = Probe("read", tuple(HOOK_POINTS), measure)
    features = functools.partial(Decoder(config, layout).apply, method="features")
    _, values = features({"params": params}, tokens, probes=[probe])
    return jax.tree.map(on_every_device, values["read"])


# --- what users pass --------------------------------------------------------------------------


def check_index(value: int, count: int, name: str) -> int:
    """value, refused where it is not one of 0..count-1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
        raise UserError(f"{name}={value!r} must be one of 0..{count - 1}", name)
    return int(value)


def query_and_key_coordinates(length: int, pieces: Sequence[str] | None) -> dict[str, tuple]:
    """Of [query, key] over one text: places, and `query_token`, `key_token`."""
    labels = token_labels(pieces, length)
    coordinates: dict[str, tuple] = {
        axis: (axis, range(length), {"units": "token"}) for axis in ("query", "key")
    }
    if labels is not None:
        coordinates |= {f"{axis}_token": (axis, labels) for axis in ("query", "key")}
    return coordinates


def token_labels(pieces: Sequence[str] | None, length: int) -> np.ndarray | None:
    """object[length], the label of every token, such as Tokenizer.pieces gives; None for none."""
    check("pieces", pieces, Sequence[str] | None)
    if pieces is not None and len(pieces) != length:
        raise UserError(f"{len(pieces)} pieces do not label {length} tokens", "pieces")
    return None if pieces is None else np.array(list(pieces), object)
