"""Parameters from a checkpoint of another format, array by array straight to where they will live.

The host never holds more than the arrays that are done and the one it reads: each goes to its
devices at once, and the layers of a stack into an array that is there already.
"""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rope_study.checkpoints.runs import abstract_params
from rope_study.checkpoints.weight_map import Located, Reader, Stored
from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.sharding import is_main_process

Array = jax.Array

DTYPES = ("float32", "bfloat16", "float16")


def fill(
    decoder: Decoder,
    located: Located,
    reader: Reader,
    dtype: str | None = None,
    label: str = "loading",
) -> dict:
    """The decoder's parameters, read from a checkpoint.

    Args:
      decoder: with a layout.
      located: where every array is.
      reader: reads the arrays.
      dtype: of the parameters; as stored where not given.
      label: names the progress bar.

    Raises:
      UserError: an array is missing or has another shape, or an unknown dtype. Nothing is read
        before all arrays are known to be there.
    """
    check_dtype(dtype)
    shapes = abstract_params(decoder)
    check(located, shapes, reader)
    total = sum(_bytes(reader, stored) for places in located.values() for stored in places)
    params: dict = {}
    with _progress(total, label) as bar:
        for path, places in located.items():
            wanted = functools.reduce(lambda tree, key: tree[key], path, shapes)
            into = params
            for key in path[:-1]:
                into = into.setdefault(key, {})
            into[path[-1]] = _read(places, wanted, reader, dtype, bar)
    return params


def check_dtype(dtype: str | None) -> None:
    """Refuses a name of no type that parameters may have."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")


def check(located: Located, shapes: dict, reader: Reader) -> None:
    """Refuses a checkpoint that lacks an array or has one of another shape; reads no data."""
    names = set(reader.names)
    for path, places in located.items():
        shape = functools.reduce(lambda tree, key: tree[key], path, shapes).shape
        for stored in places:
            if stored.name not in names:
                raise UserError(
                    f"{reader.where(stored.name)}: tensor {stored.name!r} is missing, which the"
                    f" decoder needs as {'.'.join(path)}"
                )
            found = reader.shape(stored.name)[len(stored.part) :]
            expected = stored.their_shape(shape[-len(stored.ours) :])
            if found != expected:
                raise UserError(
                    f"{reader.where(stored.name)}: tensor {stored.name!r} has shape {found}, and"
                    f" the configuration asks for {expected}"
                )


def refuse_extra(located: Located, reader: Reader, ignored: re.Pattern | None = None) -> None:
    """Refuses a checkpoint that has arrays which the decoder would leave out."""
    used = {stored.name for places in located.values() for stored in places}
    for name in reader.names:
        if name not in used and not (ignored and ignored.search(name)):
            raise UserError(
                f"{reader.where(name)}: tensor {name!r} has no place in the decoder that the"
                " configuration describes; the model would not be the one that was trained"
            )


def _read(
    places: list[Stored], wanted: jax.ShapeDtypeStruct, reader: Reader, dtype: str | None, bar: tqdm
) -> Array:
    """One array of the parameters, on its devices."""
    dtype = jnp.dtype(dtype or reader.dtype(places[0].name))
    rank = len(places[0].ours)
    if len(wanted.shape) == rank:
        return _place(_ours(places[0], wanted.shape, reader, dtype, bar), wanted.sharding)
    sharding = jax.sharding.NamedSharding(
        wanted.sharding.mesh, jax.sharding.PartitionSpec(*_whole(wanted)[1:])
    )
    stack = jnp.zeros(wanted.shape, dtype, device=wanted.sharding)
    for i, stored in enumerate(places):
        layer = _ours(stored, wanted.shape[1:], reader, dtype, bar)
        # Done before the next is read: dispatch is asynchronous and would run ahead of the copies.
        stack = _set_layer(stack, _place(layer, sharding), i).block_until_ready()
    return stack


def _whole(wanted: jax.ShapeDtypeStruct) -> tuple:
    """The sharding's axes, None for those it leaves out."""
    spec = tuple(wanted.sharding.spec)
    return spec + (None,) * (len(wanted.shape) - len(spec))


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: Array, layer: Array, i: int) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, axis=0)


def _ours(
    stored: Stored, shape: tuple[int, ...], reader: Reader, dtype: np.dtype, bar: tqdm
) -> np.ndarray:
    array = stored.to_ours(reader.read(stored.name), shape).astype(dtype, copy=False)
    bar.update(_bytes(reader, stored))
    return array


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> Array:
    """Each process gives its devices their parts."""
    placed = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return placed.block_until_ready()  # so that the host can let go of it


def _bytes(reader: Reader, stored: Stored) -> int:
    shape = reader.shape(stored.name)[len(stored.part) :]
    return int(np.prod(shape)) * np.dtype(reader.dtype(stored.name)).itemsize


def _progress(total: int, label: str) -> tqdm:
    return tqdm(
        total=total,
        desc=label,
        unit="B",
        unit_scale=True,
        disable=not is_main_process(),
        mininterval=0.2 if sys.stderr.isatty() else 20,
    )
