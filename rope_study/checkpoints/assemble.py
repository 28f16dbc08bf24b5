"""Parameters from a checkpoint of another format, array by array straight to where they will live.

Each process reads what its own devices hold. The host never holds more than the arrays that are
done and the one it reads: each goes to its devices at once, and the layers of a stack into an array
that is there already.
"""

import functools
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rope_study.checkpoints.runs import abstract_params
from rope_study.checkpoints.weight_map import (
    Index,
    Reader,
    TensorSpec,
    WeightMap,
    parameter_at,
)
from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.sharding import is_main_process

Array = jax.Array

DTYPES = ("float32", "bfloat16", "float16")


def assemble(
    decoder: Decoder,
    weight_map: WeightMap,
    reader: Reader,
    dtype: str | None = None,
    label: str = "loading",
) -> dict:
    """The decoder's parameters, read from a checkpoint.

    Args:
      decoder: with a layout.
      weight_map: where every array is.
      reader: reads the arrays.
      dtype: of the parameters; as stored where not given, and of a stack of layers the type that
        holds those of all. Float64 becomes float32.
      label: names the progress bar.

    Raises:
      UserError: an array is missing, has another shape or no floating point type, an unknown
        dtype, or one that cannot hold a value. Nothing is read before all arrays are known to be
        there.
    """
    check_dtype(dtype)
    shapes = abstract_params(decoder)
    check_shapes(weight_map, shapes, reader)
    total = sum(_bytes(reader, spec) for specs in weight_map.values() for spec in specs)
    params: dict = {}
    with _progress(total, label) as bar:
        for path, specs in weight_map.items():
            branch = params
            for key in path[:-1]:
                branch = branch.setdefault(key, {})
            branch[path[-1]] = _read(specs, parameter_at(shapes, path), reader, dtype, bar)
    return params


def check_dtype(dtype: str | None) -> None:
    """Refuses a name of no type that parameters may have."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}", "dtype")


def check_shapes(weight_map: WeightMap, shapes: dict, reader: Reader) -> None:
    """Refuses a checkpoint that lacks an array or has one of another shape or of whole numbers.

    Reads no data.
    """
    names = set(reader.names)
    for path, specs in weight_map.items():
        shape = parameter_at(shapes, path).shape
        for spec in specs:
            if spec.name not in names:
                raise UserError(
                    f"{reader.where(spec.name)}: tensor {spec.name!r} is missing, which the"
                    f" decoder needs as {'.'.join(path)}"
                )
            stored = _shape(reader, spec)
            expected = spec.stored_shape(shape[-len(spec.axes) :])
            if stored != expected:
                raise UserError(
                    f"{reader.where(spec.name)}: tensor {spec.name!r} has shape {stored}, and"
                    f" the configuration asks for {expected}"
                )
            if not jnp.issubdtype(reader.dtype(spec.name), jnp.floating):
                raise UserError(
                    f"{reader.where(spec.name)}: tensor {spec.name!r} is of type"
                    f" {reader.dtype(spec.name)}, which weights are not: load a checkpoint that is"
                    " not quantised"
                )


def refuse_extra(weight_map: WeightMap, reader: Reader, ignored: re.Pattern | None = None) -> None:
    """Refuses a checkpoint that has arrays which the decoder would leave out."""
    used = {spec.name for specs in weight_map.values() for spec in specs}
    for name in reader.names:
        if name not in used and not (ignored and ignored.search(name)):
            raise UserError(
                f"{reader.where(name)}: tensor {name!r} has no place in the decoder that the"
                " configuration describes; the model would not be the one that was trained"
            )


def _read(
    specs: list[TensorSpec],
    target: jax.ShapeDtypeStruct,
    reader: Reader,
    dtype: str | None,
    bar: tqdm,
) -> Array:
    """One array of the parameters, on its devices."""
    stored = functools.reduce(jnp.promote_types, [reader.dtype(spec.name) for spec in specs])
    kind = jax.dtypes.canonicalize_dtype(dtype or stored)  # float64 is float32 here
    if len(target.shape) == len(specs[0].axes):
        return _place(specs[0], target, reader, kind, bar)
    layer = _without_first_axis(target)
    stack = jnp.zeros(target.shape, kind, device=target.sharding)
    for i, spec in enumerate(specs):
        # Done before the next is read: dispatch is asynchronous and would run ahead of the copies.
        stack = _set_layer(stack, _place(spec, layer, reader, kind, bar), i).block_until_ready()
    return stack


def _without_first_axis(stacked: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One layer of a stack: its shape and sharding."""
    sharding = stacked.sharding
    assert isinstance(sharding, jax.sharding.NamedSharding)
    spec = jax.sharding.PartitionSpec(*tuple(sharding.spec)[1:])
    return jax.ShapeDtypeStruct(
        stacked.shape[1:],
        stacked.dtype,
        sharding=jax.sharding.NamedSharding(sharding.mesh, spec),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: Array, layer: Array, i: int) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, axis=0)


def _place(
    spec: TensorSpec, target: jax.ShapeDtypeStruct, reader: Reader, dtype: np.dtype, bar: tqdm
) -> Array:
    """One array of the checkpoint on its devices; each process reads what its own hold, once."""
    pieces: dict[str, np.ndarray] = {}  # devices that hold the same share one

    def read(index: Index | None) -> np.ndarray:
        assert index is not None
        if str(index) not in pieces:
            piece = spec.read(reader, target.shape, index)
            pieces[str(index)] = cast(piece, dtype, f"{reader.where(spec.name)}: {spec.name}")
        return pieces[str(index)]

    placed = jax.make_array_from_callback(target.shape, target.sharding, read)
    bar.update(_bytes(reader, spec))
    return placed.block_until_ready()  # so that the host can let go of the pieces


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array as that type; UserError where a value lies beyond it, as 1e5 beyond float16."""
    with np.errstate(over="ignore"):
        narrowed = array.astype(dtype, copy=False)
    if narrowed.dtype != array.dtype and not np.array_equal(
        np.isfinite(narrowed), np.isfinite(array)
    ):
        raise UserError(
            f"{name} has values up to {np.nanmax(np.abs(array)):.3g}, beyond {dtype}: give"
            " dtype='float32'",
            "dtype",
        )
    return narrowed


def _shape(reader: Reader, spec: TensorSpec) -> tuple[int, ...]:
    return reader.shape(spec.name)[len(spec.part) :]


def _bytes(reader: Reader, spec: TensorSpec) -> int:
    return math.prod(_shape(reader, spec)) * np.dtype(reader.dtype(spec.name)).itemsize


def _progress(total: int, label: str) -> tqdm:
    return tqdm(
        total=total,
        desc=label,
        unit="B",
        unit_scale=True,
        disable=not is_main_process(),
        mininterval=0.2 if sys.stderr.isatty() else 20,
    )
