"""Which heads of a layer each device has, where kernels run on the heads of one.

B batch, T queries, S keys, N query heads, K key/value heads, H head_dim.
"""

import jax

from rope_study.sharding import Layout

Array = jax.Array


def dividing(layout: Layout, q_shape: tuple[int, ...], kv_heads: int) -> Layout:
    """The layout of attention for q[B, T, N, H]: what does not divide stays whole.

    Heads are split by axes that split neither rows nor queries. Key-value heads are split as these
    are or, where too few, not at all: each device takes its own then.
    """
    batch, length, heads, _ = q_shape
    layout = layout.whole_where_uneven(batch=batch, length=length)
    used = layout.rules.batch + layout.rules.length
    free = tuple(axis for axis in layout.rules.heads if axis not in used)
    layout = layout.with_rules(heads=free).whole_where_uneven(heads=heads)
    own, group = heads // layout.shards("heads"), heads // kv_heads
    if own % group and group % own:  # a device would need parts of two groups
        layout = layout.with_rules(heads=())
    return layout.with_rules(kv_heads=layout.rules.heads).whole_where_uneven(kv_heads=kv_heads)


def own_heads(keys: Array, own: int, heads: int, layout: Layout) -> Array:
    """Of keys [b, S, k, H] those that the device's `own` of all query heads read."""
    axes = layout.rules.heads
    if layout.rules.kv_heads == axes:
        return keys
    group = heads // keys.shape[2]
    first = jax.lax.axis_index(axes) * own // group
    return jax.lax.dynamic_slice_in_dim(keys, first, max(1, own // group), axis=2)
