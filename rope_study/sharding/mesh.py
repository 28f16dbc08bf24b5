"""The mesh, and the rules from logical to mesh axes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rope_study.checks import checked
from rope_study.errors import UserError, nearest

MESH_AXES = ("data", "fsdp", "context", "tensor")
MeshAxes = tuple[str, ...]
Device = Any  # a jax.Device, which type checkers do not know for a class


@dataclasses.dataclass(frozen=True)
class Rules:
    """For each logical axis the mesh axes that split it; none keep it whole on every device.

    Written as a tuple or as text, "data,fsdp"; kept as a tuple.

    Raises:
      UserError: no axis of the mesh, or one twice.
    """

    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = ("context",)
    embed: MeshAxes = ("fsdp", "context")  # of parameters; activations keep their width whole
    heads: MeshAxes = ("tensor",)
    kv_heads: MeshAxes = ("tensor",)
    head_dim: MeshAxes = ()
    mlp: MeshAxes = ("tensor",)
    vocab: MeshAxes = ("tensor",)
    layers: MeshAxes = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if not isinstance(given, str | tuple | list | None):
                given = repr(given)
            names = given.replace(" ", "").split(",") if isinstance(given, str) else given or ()
            axes = tuple(filter(None, names))
            if not set(axes) <= set(MESH_AXES) or len(axes) != len(set(axes)):
                raise UserError(
                    f"rules.{field.name}={given!r}: axes of the mesh, each once, such as"
                    f" 'data,fsdp', or none. Known: {', '.join(MESH_AXES)}",
                    f"rules.{field.name}",
                )
            object.__setattr__(self, field.name, axes)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with rules: turns logical axis names into shardings."""

    mesh: Mesh
    rules: Rules = dataclasses.field(default_factory=Rules)

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The mesh axes for one array's logical axes.

        Raises:
          UserError: two of its axes would be split over the same mesh axis.
        """
        mesh_axes = [() if axis is None else getattr(self.rules, axis) for axis in axes]
        used = [name for names in mesh_axes for name in names]
        if len(used) != len(set(used)):
            last = [axis for axis, names in zip(axes, mesh_axes, strict=True) if names][-1]
            raise UserError(
                f"the axes {tuple(axes)} would split one array twice over the same mesh axis"
                f" ({', '.join(sorted(used))})",
                f"rules.{last}",
            )
        return PartitionSpec(*(names or None for names in mesh_axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """The sharding of an array with these logical axes."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x, told to the compiler to be split like this."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    def shards(self, axis: str) -> int:
        """Over how many devices a logical axis is split."""
        return math.prod(self.mesh.shape[name] for name in getattr(self.rules, axis))

    def whole_where_uneven(self, **sizes: int) -> "Layout":
        """The same, without splitting the logical axes whose size does not divide: batch=3."""
        uneven = {axis: () for axis, size in sizes.items() if size % self.shards(axis)}
        if not uneven:
            return self
        return self.with_rules(**uneven)

    def with_rules(self, **rules: MeshAxes) -> "Layout":
        """The same with these rules: length=()."""
        return dataclasses.replace(self, rules=dataclasses.replace(self.rules, **rules))

    def tree(self, boxed_tree):
        """Shardings for a tree whose arrays Flax boxed with logical axis names (the rest whole)."""
        return jax.tree.map(
            lambda spec: self.sharding(*spec),
            nn.get_partition_spec(boxed_tree),
            is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
        )

    def place_rows(
        self, rows: Callable[[int, int], np.ndarray], shape: tuple[int, ...]
    ) -> jax.Array:
        """A global batch of that shape, split by rows; each host reads only its own.

        Args:
          rows: (start, stop) -> array [stop - start, ...].
          shape: of the whole batch over all hosts.
        """
        count = shape[0]
        self.check_rows(count)
        sharding = self.sharding("batch", *[None] * (len(shape) - 1))
        once = functools.cache(rows)  # devices along tensor hold the same

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(count)
            return once(start, stop)

        return jax.make_array_from_callback(shape, sharding, read)

    def check_rows(self, count: int) -> None:
        """Refuses a batch whose rows do not divide over the devices of the batch axis."""
        if count % self.shards("batch"):
            raise UserError(
                f"a batch of {count} rows does not divide over {self.shards('batch')} devices",
                "batch_size",
                "give a multiple, or a mesh that splits less over data and fsdp",
            )

    def fill(self, count: int) -> np.ndarray:
        """Which of `count` rows to run, int[n], so that n divides: the first again at the end."""
        shards = self.shards("batch")
        return np.arange(-(-count // shards) * shards) % count

    def fill_tokens(self, tokens: np.ndarray, targets: int = 0) -> np.ndarray:
        """int[B, T] with rows as `fill` and columns at the end so that both divide.

        What a causal decoder gives at the first T places is the same.

        Args:
          targets: how many of the last tokens are not read, and do not count in the length.
        """
        columns = -(tokens.shape[1] - targets) % self.shards("length")
        return np.pad(tokens[self.fill(len(tokens))], [(0, 0), (0, columns)], mode="edge")

    def place(self, batch: np.ndarray) -> jax.Array:
        """A batch that every host holds whole, split by rows."""
        return self.place_rows(lambda start, stop: batch[start:stop], batch.shape)


@checked
def make_layout(
    mesh: str = "fsdp=-1", rules: Rules | None = None, devices: Sequence[Device] | None = None
) -> Layout:
    """The layout for a mesh written as "data=2,fsdp=-1,tensor=1"; -1 takes what is left.

    Args:
      mesh: devices along each axis.
      rules: which axes split what.
      devices: those of a topology to compile for; all that there are where not given.

    Raises:
      UserError: an unknown axis, a size that is no integer, sizes that do not fit the devices, or
        an axis other than data over several slices of TPUs.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill(_parse_mesh(mesh), len(devices), mesh)
    return Layout(Mesh(_grid(sizes, devices, mesh), MESH_AXES), rules or Rules())


def _grid(sizes: dict[str, int], devices: Sequence[Device], mesh: str) -> np.ndarray:
    """The devices by the axes of the mesh, neighbours next to each other; slices along data."""
    slices = _slices(devices)
    if slices == 1:
        return mesh_utils.create_device_mesh(tuple(sizes.values()), devices)
    if sizes["data"] % slices:
        raise UserError(
            f"mesh {mesh!r} would split more than batches over {slices} slices of TPUs, whose"
            f" network is slow: data must be a multiple of {slices}, as in"
            f" 'data={slices},fsdp=-1'",
            "mesh",
        )
    in_slice = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    return mesh_utils.create_hybrid_device_mesh(in_slice, (slices, 1, 1), devices)


def _slices(devices: Sequence[Device]) -> int:
    """How many slices of TPUs; the hosts of GPUs are numbered alike and are none."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


def _parse_mesh(mesh: str) -> dict[str, int]:
    sizes: dict[str, int] = dict.fromkeys(MESH_AXES, 1)
    for part in filter(None, mesh.replace(" ", "").split(",")):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES:
            raise UserError(
                f"unknown mesh axis {axis!r} in {mesh!r}.{nearest(axis, MESH_AXES)}"
                f" Known: {', '.join(MESH_AXES)}",
                "mesh",
            )
        try:
            sizes[axis] = int(size)
        except ValueError:
            message = f"mesh size {size!r} of {axis!r} is not an integer"
            raise UserError(message, "mesh") from None
    return sizes


def _fill(sizes: dict[str, int], devices: int, mesh: str) -> dict[str, int]:
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    fits = fixed > 0 and len(open_axes) <= 1 and devices % fixed == 0
    if not fits or (not open_axes and fixed != devices):
        raise UserError(
            f"mesh {mesh!r} does not fit {devices} device(s): the sizes must multiply to"
            f" {devices}, at most one may be -1 (the rest)",
            "mesh",
        )
    return sizes | {axis: devices // fixed for axis in open_axes}


def one_device() -> Layout:
    """The layout of a single device."""
    grid = np.array(jax.local_devices()[:1]).reshape([1] * len(MESH_AXES))
    return Layout(Mesh(grid, MESH_AXES))
