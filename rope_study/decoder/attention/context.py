"""The reference on devices that share the length of a text: its own queries, and the keys of all.

Keys are gathered, not passed round a ring (results/context_axis.txt). B batch, T queries, S keys,
N query heads, K key/value heads, H head_dim.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rope_study.decoder.attention import reference
from rope_study.decoder.attention_scores import ScoreInputs
from rope_study.decoder.config import LayerSpec
from rope_study.decoder.hooks import SumOverWeights
from rope_study.sharding import Layout
from rope_study.sharding.mesh import MeshAxes

Array = jax.Array
Keys = Mapping[str, Array]  # "k", "v" [B, S, K, H] and what the score function keeps [B, S, ...]

# Queries [B, t, N, H], keys, what the score function reads of these queries, their places among the
# keys int[t] (0..t-1 where None), and more -> what they give.
OfQueries = Callable[..., Array]


def attend(
    spec: LayerSpec,
    layout: Layout | None,
    q: Array,
    keys: Keys,
    inputs: ScoreInputs | None,
    rows: Array | None,
) -> Array:
    """A layer's attention by reference.attend: [B, T, N, H]; arguments as backends.attend_by."""

    def run(q: Array, keys: Keys, inputs: ScoreInputs | None, rows: Array | None) -> Array:
        softmax = _softmax(spec, inputs, keys)
        return reference.attend(
            q, keys["k"], keys["v"], spec.window, spec.chunk, softmax, rows, parts,
            keys.get("documents"),
        )  # fmt: skip

    split = _split(layout, q, rows)
    parts = 1 if split is None else split.shards("length")
    if split is None:
        return run(q, keys, inputs, rows)

    @jax.checkpoint  # or the gathered keys of every layer would be kept for the backward pass
    def of_device(q: Array, keys: Keys, inputs: ScoreInputs | None, rows: Array) -> Array:
        whole: dict[str, Any] = {
            name: _all_gather(key, split.rules.length) for name, key in keys.items()
        }
        return run(q, whole, inputs, rows)

    by_token = PartitionSpec(None, split.rules.length)
    return _by_device(of_device, split, inputs, by_token, by_token)(q, keys)


def weight_sums(
    spec: LayerSpec,
    layout: Layout | None,
    q: Array,
    keys: Keys,
    inputs: ScoreInputs | None,
    rows: Array | None,
) -> SumOverWeights:
    """The layer's attention weights as a function that sums over them; arguments as `attend`.

    Where devices share the length, they share every block: each has queries of its own part in it.
    """

    def weights_of(
        q: Array, keys: Keys, inputs: ScoreInputs | None, rows: Array, queries: Array
    ) -> Array:
        softmax, block = _softmax(spec, inputs, keys), jnp.take(q, queries, axis=1)
        return reference.probabilities(
            block, keys["k"], spec.window, spec.chunk, softmax, rows[queries], queries,
            documents=keys.get("documents"),
        )  # fmt: skip

    def sum_over_weights(reduce: Callable[..., Any], *arrays: Array) -> Any:
        T, S = q.shape[1], keys["k"].shape[1]
        split = _split(layout, q, rows)
        if split is None:
            places = jnp.arange(T) if rows is None else rows
            weights = functools.partial(weights_of, q, keys, inputs, places)
            return reference.sum_over_queries(lambda at: reduce(weights(at), at, *arrays), T, S)

        parts, axes = split.shards("length"), split.rules.length
        whole, by_query = PartitionSpec(), PartitionSpec(None, None, axes)
        by_device = _by_device(weights_of, split, inputs, whole, by_query)
        gathered, ready = jax.tree.map(lambda a: _gathered(a, split), (keys, arrays))

        def of_block(queries: Array) -> Any:
            places = jnp.arange(parts)[:, None] * (T // parts) + queries
            return reduce(by_device(q, gathered, queries), places.ravel(), *ready)

        return reference.sum_over_queries(of_block, T // parts, S, parts)

    return sum_over_weights


def _softmax(spec: LayerSpec, inputs: ScoreInputs | None, keys: Keys) -> reference.Softmax | None:
    """What the layer's score function makes of logits on these keys; None where it has none."""
    score_function = spec.score_function
    if inputs is None or score_function is None:
        return None
    inputs = dataclasses.replace(inputs, keys=keys)
    return lambda logits, mask, queries: score_function.weights(logits, mask, inputs.of(queries))


# --- devices ----------------------------------------------------------------------------------


def _split(layout: Layout | None, q: Array, rows: Array | None) -> Layout | None:
    """The layout, if its devices share the length of q[B, T, N, H], which follows no cache."""
    if layout is None or rows is not None:
        return None
    layout = layout.whole_where_uneven(length=q.shape[1])
    return layout if layout.shards("length") > 1 else None


def _by_device(
    run: OfQueries,
    layout: Layout,
    inputs: ScoreInputs | None,
    of_keys: PartitionSpec,
    of_result: PartitionSpec,
) -> Callable[..., Array]:
    """(q, keys, more) -> run(q, keys, inputs, rows, more), each device with its own queries.

    Left to the compiler, every device would run the blocks of all queries one after the other.

    Args:
      of_keys, of_result: how devices share the keys and the result; `more` is whole on all.
    """
    axes = layout.rules.length
    by_token, by_place, whole = PartitionSpec(None, axes), PartitionSpec(axes), PartitionSpec()
    of_inputs: Any = None
    if inputs is not None:
        specs: Any = by_token, by_token, by_token, by_place, {}, inputs.rotary, whole
        inputs, of_inputs = dataclasses.replace(inputs, keys={}), ScoreInputs(*specs)

    def on_devices(q: Array, keys: Keys, *more: Array) -> Array:
        T = q.shape[1]
        text = {name: key[:, :T] for name, key in keys.items()}  # a cache has room for more
        return jax.shard_map(
            run,
            mesh=layout.mesh,
            in_specs=(by_token, of_keys, of_inputs, by_place, *[whole] * len(more)),
            out_specs=of_result,
            # Rows and heads stay with the compiler, as where the length is not split.
            axis_names={*layout.mesh.axis_names} - _of_rows_and_heads(layout) | {*axes},
            check_vma=False,
        )(q, text, inputs, jnp.arange(T), *more)

    return on_devices


def _of_rows_and_heads(layout: Layout) -> set[str]:
    return {*layout.rules.batch, *layout.rules.heads, *layout.rules.kv_heads}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _all_gather(keys: Array, axes: MeshAxes) -> Array:
    """Every device's keys [B, S / n, ...], one after the other: [B, S, ...].

    Gradients are summed over devices in f32, as on one device; XLA for CPUs also fails on a sum of
    bf16 here (jax 0.10).
    """
    return jax.lax.all_gather(keys, axes, axis=1, tiled=True)


def _all_gather_forward(keys: Array, axes: MeshAxes) -> tuple[Array, None]:
    return _all_gather(keys, axes), None


def _all_gather_backward(axes: MeshAxes, _: None, g: Array) -> tuple[Array | None]:
    if g.dtype == jax.dtypes.float0:  # of positions
        return (None,)
    total = jax.lax.psum_scatter(g.astype(jnp.float32), axes, scatter_dimension=1, tiled=True)
    return (total.astype(g.dtype),)


_all_gather.defvjp(_all_gather_forward, _all_gather_backward)


def _gathered(a: Array, layout: Layout) -> Array:
    """a[B, S, ...] of the whole text on every device, rows and heads split as they are; or a[S]."""
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(*([free, None, *[free] * (a.ndim - 2)] if a.ndim > 1 else [None]))
    return jax.lax.with_sharding_constraint(a, NamedSharding(layout.mesh, spec))
