"""Activations of a few texts at once, for functions that look at one place in one text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rope_study.decoder import Decoder, Probe, check_bos
from rope_study.decoder.hooks import HOOK_POINTS
from rope_study.errors import UserError
from rope_study.probes.run import in_f32

Array = jax.Array


def capture(
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
    probed = in_f32(decoder)
    rows = fill_rows(len(tokens), probed.layout.shards("batch"))
    found = _capture(probed, read, params, probed.layout.place(tokens[rows]), arguments)
    return jax.tree.map(lambda a: np.asarray(a)[: len(tokens)], found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _capture(
    decoder: Decoder, read: Callable, params: dict, tokens: Array, arguments: tuple
) -> list[Any]:
    def measure(activations: Mapping[str, Array], weights: Array) -> Any:
        return read(activations, *arguments)

    probe = Probe("capture", tuple(HOOK_POINTS), measure, lambda *_: None)
    _, aux = decoder.apply({"params": params}, tokens, probes=[probe], method="features")
    whole = lambda a: decoder.layout.constrain(a, *[None] * a.ndim)  # noqa: E731
    return jax.tree.map(whole, aux["capture"])


def fill_rows(count: int, shards: int) -> np.ndarray:
    """Which of `count` rows to run so that they divide over the devices: repeats at the end."""
    return np.arange(-(-count // shards) * shards) % count


# --- what users pass --------------------------------------------------------------------------


def one_text(decoder: Decoder, tokens: Sequence[int], least: int = 1) -> np.ndarray:
    """int32[T] of one text, refusing other shapes, unknown ids and too few tokens."""
    found = np.asarray(tokens)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise UserError(
            f"tokens of shape {found.shape} and type {found.dtype} are not one text: pass its ids,"
            " int[T], such as a row of encode_batch"
        )
    if len(found) < least:
        raise UserError(f"the text has {len(found)} token(s), and {least} are needed")
    vocab = decoder.config.vocab_size
    if found.min() < 0 or found.max() >= vocab:
        raise UserError(f"the text has ids from {found.min()} to {found.max()}, not 0..{vocab - 1}")
    check_bos(decoder.config, found[None])
    return found.astype(np.int32)


def index(value: int, count: int, name: str) -> int:
    """value, refused where it is not one of 0..count-1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
        raise UserError(f"{name}={value!r} must be one of 0..{count - 1}")
    return int(value)


def query_and_key(length: int, pieces: Sequence[str] | None) -> dict[str, tuple]:
    """The coordinates of [query, key] over one text: places, and `query_token`, `key_token`."""
    names = labels(pieces, length)
    places = {axis: (axis, range(length), {"units": "token"}) for axis in ("query", "key")}
    return places | (
        {} if names is None else {f"{axis}_token": (axis, names) for axis in ("query", "key")}
    )


def labels(pieces: Sequence[str] | None, length: int) -> np.ndarray | None:
    """object[length], the label of every token, such as Tokenizer.pieces gives; None for none."""
    if pieces is not None and len(pieces) != length:
        raise UserError(f"{len(pieces)} pieces do not label {length} tokens")
    return None if pieces is None else np.array(list(pieces), object)
