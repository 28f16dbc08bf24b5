"""The mean loss of a batch and its gradients: at once, or in parts that run one after the other."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rope_study.decoder import Decoder
from rope_study.errors import UserError
from rope_study.sharding import Layout, Rules
from rope_study.sharding.mesh import MeshAxes


def check_batch(batch_size: int, length: int, accumulate: int, layout: Layout) -> None:
    """Refuses a batch of which not every device gets as many rows and tokens in every part."""
    devices = layout.shards("batch")
    if batch_size % (accumulate * devices):
        raise UserError(
            f"batch_size={batch_size} is no multiple of {accumulate * devices}, which is"
            f" accumulate={accumulate} times {devices} device(s) that share its rows",
            "batch_size",
            "change one of them, or let the mesh split less over data and fsdp",
        )
    if length % layout.shards("length"):
        raise UserError(
            f"length={length} is no multiple of the {layout.shards('length')} devices that share"
            " it",
            "length",
            "change it, or let the mesh split less over context",
        )


# Windows int32[B, T + 1]; with weights f32[B, T] of their targets where not all count alike.
Batch = jax.Array | tuple[jax.Array, jax.Array]


def loss_and_gradients(
    decoder: Decoder, params: dict, batch: Batch, accumulate: int, shardings: Any
) -> tuple[jax.Array, dict]:
    """Mean loss of a batch in nats a target that counts, and its gradients in f32.

    Parameters that are split are gathered, and their gradients scattered, once a part, as otherwise
    once a step. Devices that hold the same parameters (along `data`) sum theirs after the last part
    only.

    Args:
      decoder: with a layout.
      params: its parameters.
      batch: split by rows over the devices; each keeps its own in every part.
      accumulate: how many parts the batch is cut into; see check_batch.
      shardings: of the parameters.
    """
    if accumulate == 1:
        return _of_rows(decoder, params, batch, _targets(batch))
    return _in_parts(decoder, params, batch, accumulate, shardings)


def _targets(batch: Batch) -> int | jax.Array:
    """How many targets count, at least one."""
    if isinstance(batch, tuple):
        return jnp.maximum(batch[1].sum(), 1)
    return batch[:, 1:].size


def _of_rows(
    decoder: Decoder, params: dict, batch: Batch, targets: int | jax.Array
) -> tuple[jax.Array, dict]:
    """The summed loss of some rows over the number of all targets, and its gradients."""

    windows, weights = batch if isinstance(batch, tuple) else (batch, None)

    def mean_loss(params: dict) -> jax.Array:
        inputs = windows[:, :-1], windows[:, 1:], weights
        total: Any = decoder.apply({"params": params}, *inputs, method="loss")
        return total / targets

    return jax.value_and_grad(mean_loss)(params)


def _in_parts(
    decoder: Decoder, params: dict, batch: Batch, accumulate: int, shardings: Any
) -> tuple[jax.Array, dict]:
    layout, targets = decoder.layout, _targets(batch)
    assert layout is not None
    same, others = _along_same_parameters(layout)
    group = Decoder(decoder.config, layout.with_rules(batch=others))
    # A dimension for the groups of devices that have sums of their own, where there are several.
    groups = (math.prod(layout.mesh.shape[axis] for axis in same),) if same else ()
    groups_spec = (same,) if same else ()

    def constrain(x: jax.Array, *spec: Any) -> jax.Array:
        sharding = NamedSharding(layout.mesh, PartitionSpec(*groups_spec, *spec))
        return jax.lax.with_sharding_constraint(x, sharding)

    def of_part(part: Batch) -> tuple[jax.Array, dict]:
        return _of_rows(group, params, part, targets)

    of_groups = jax.vmap(of_part, spmd_axis_name=same) if same else of_part

    def add(sums: tuple, part: Batch) -> tuple[tuple, None]:
        part = jax.tree.map(lambda rows: constrain(rows, others or None, None), part)
        return jax.tree.map(jnp.add, sums, of_groups(part)), None

    # The rows of a device lie together: neighbours go to different parts.
    parts = jax.tree.map(
        lambda rows: jnp.moveaxis(
            rows.reshape(*groups, -1, accumulate, rows.shape[1]), -2, 0
        ), batch,
    )  # fmt: skip
    zeros = jax.tree.map(
        lambda p, s: constrain(jnp.zeros((*groups, *p.shape), jnp.float32), *s.spec),
        params, shardings,
    )  # fmt: skip
    sums, _ = jax.lax.scan(add, (jnp.zeros(groups, jnp.float32), zeros), parts)
    return jax.tree.map(lambda a: jnp.sum(a, axis=tuple(range(len(groups)))), sums)


def _along_same_parameters(layout: Layout) -> tuple[MeshAxes, MeshAxes]:
    """The first axes of the batch that split no parameter, of more than one device; the others."""
    fields = {field.name for field in dataclasses.fields(Rules)} - {"batch", "length"}
    split = {axis for field in fields for axis in getattr(layout.rules, field)}
    batch = [axis for axis in layout.rules.batch if layout.mesh.shape[axis] > 1]
    same = tuple(itertools.takewhile(lambda axis: axis not in split, batch))
    return same, tuple(batch[len(same) :])
