"""The reference on devices that share the length of a text: its own queries, and the keys of all.

Keys are gathered, not passed round a ring: results/context_axis.txt. B batch, T queries, S keys,
N query heads, K key/value heads, H head_dim.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rope_study.decoder.attention import reference
from rope_study.decoder.attention_scores import ScoreInputs
from rope_study.decoder.config import LayerSpec
from rope_study.decoder.hooks import SumOverWeights
from rope_study.sharding import Layout

Array = jax.Array
Keys = Mapping[str, Array]

# (queries [B, t, N, H], the keys that they read, what a score function reads, int[t] the places of
# these queries among the keys or None for 0..t-1) -> something.
OfQueries = Callable[[Array, Keys, ScoreInputs | None, Array | None], Any]


def attend(
    spec: LayerSpec,
    layout: Layout | None,
    q: Array,
    keys: Keys,
    inputs: ScoreInputs | None,
    rows: Array | None,
) -> Array:
    """A layer's attention by reference.attend: [B, T, N, H]; arguments as backends.attend_by."""

    def attend(q: Array, keys: Keys, inputs: ScoreInputs | None, rows: Array | None) -> Array:
        softmax = _softmax(spec, inputs)
        return reference.attend(q, keys["k"], keys["v"], spec.window, spec.chunk, softmax, rows)

    return _by_device(attend, layout, q, keys, inputs, rows)


def weight_sums(
    spec: LayerSpec,
    layout: Layout | None,
    q: Array,
    keys: Keys,
    inputs: ScoreInputs | None,
    rows: Array | None,
) -> SumOverWeights:
    """The layer's attention weights as a function that sums over them; arguments as `attend`."""

    def sum_over_weights(reduce: Callable[[Array, Array], Any]) -> Any:
        def sums(q: Array, keys: Keys, inputs: ScoreInputs | None, rows: Array | None) -> Any:
            places = jnp.arange(q.shape[1]) if rows is None else rows
            softmax = _softmax(spec, inputs)

            def of_block(queries: Array) -> Any:
                block, at = jnp.take(q, queries, axis=1), places[queries]
                weights = reference.probabilities(
                    block, keys["k"], spec.window, spec.chunk, softmax, at, queries
                )
                return reduce(weights, at)

            return reference.sum_over_queries(of_block, q.shape[1], keys["k"].shape[1])

        return _by_device(sums, layout, q, keys, inputs, rows, summed=True)

    return sum_over_weights


def _softmax(spec: LayerSpec, inputs: ScoreInputs | None) -> reference.Softmax | None:
    """What the layer's score function makes of logits; None where it has none."""
    if inputs is None or spec.score_function is None:
        return None
    score_function = spec.score_function
    return lambda logits, mask, queries: score_function.weights(logits, mask, inputs.of(queries))


def _by_device(
    run: OfQueries,
    layout: Layout | None,
    q: Array,
    keys: Keys,
    inputs: ScoreInputs | None,
    rows: Array | None,
    summed: bool = False,
) -> Any:
    """run(q, keys, inputs, rows), by every device for its part of the length where it is split.

    Left to the compiler, every device would run the blocks of all queries one after the other.

    Args:
      summed: whether the result sums over queries; else it is [B, t, ...].
    """
    T = q.shape[1]
    layout = None if layout is None else layout.whole_where_uneven(length=T)
    if rows is not None or layout is None or layout.shards("length") == 1:
        return run(q, keys, inputs, rows)
    axes = layout.rules.length

    # Otherwise the backward pass would find the gathered keys of every layer in memory.
    @jax.checkpoint
    def of_device(q: Array, keys: Keys, inputs: ScoreInputs | None, rows: Array) -> Any:
        gather = functools.partial(jax.lax.all_gather, axis_name=axes, axis=1, tiled=True)
        keys = jax.tree.map(gather, keys)
        if inputs is not None:
            inputs = dataclasses.replace(inputs, keys=keys)
        result = run(q, keys, inputs, rows)
        return jax.lax.psum(result, axes) if summed else result

    keys = {name: key[:, :T] for name, key in keys.items()}  # without a cache's room for more
    by_token, by_place, whole = PartitionSpec(None, axes), PartitionSpec(axes), PartitionSpec()
    of_inputs = None
    if inputs is not None:
        inputs = dataclasses.replace(inputs, keys={})
        of_inputs = ScoreInputs(by_token, by_token, by_token, by_place, whole, inputs.rotary, whole)
    # Rows and heads stay with the compiler, as everywhere else.
    left = set(layout.rules.batch + layout.rules.heads + layout.rules.kv_heads)
    return jax.shard_map(
        of_device,
        mesh=layout.mesh,
        in_specs=(by_token, by_token, of_inputs, by_place),
        out_specs=whole if summed else by_token,
        axis_names=set(layout.mesh.axis_names) - left | set(axes),
        check_vma=False,
    )(q, keys, inputs, jnp.arange(T))
