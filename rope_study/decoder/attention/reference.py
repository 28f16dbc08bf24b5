"""Causal attention in plain JAX: on any device, with any change of its logits, in blocks.

B batch, T queries, S keys, N query heads, K key/value heads, H head_dim. Query head n reads
key/value head n // (N / K): N = K is multi-head, K = 1 multi-query, between them grouped-query.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# The reference holds logits of all queries up to this many keys, and of so many queries at a time
# beyond.
LONG, QUERY_BLOCK = 2048, 512
# The keys of a long text are cut into so many parts: a block of queries reads those up to its own.
KEY_PARTS = 8

# (logits f32[B, N, t, S], mask bool[t, S] or [B, 1, t, S], queries int[t]) -> attention weights
# f32[B, N, t, S]: what may stand in place of the masked softmax (see attention_scores). `queries`
# says which of the T queries these are.
Softmax = Callable[[Array, Array, Array], Array]


def causal_mask(
    rows: Array | int,
    keys: Array | int | None = None,
    window: int | None = None,
    chunk: int | None = None,
) -> Array:
    """bool[T, S], True where the query at place t may read the key at place s.

    That is s <= t; with a window, also t - s < window; with a chunk, also t // chunk == s // chunk:
    a query reads its own chunk only, so the first of a chunk reads nothing but itself (Llama 4).

    Args:
      rows: the places of the queries among the keys, int[T]; a number T stands for 0..T-1.
      keys: the places of the keys, int[S], or S; as many as there are queries where not given.
    """
    t = jnp.arange(rows) if isinstance(rows, int) else rows
    s = t.shape[0] if keys is None else keys
    s = jnp.arange(s) if isinstance(s, int) else s
    t, s = t[:, None], s[None, :]
    allowed = t >= s
    if window is not None:
        allowed &= t - s < window
    if chunk is not None:
        allowed &= t // chunk == s // chunk
    return allowed


def probabilities(
    q: Array,
    k: Array,
    window: int | None = None,
    chunk: int | None = None,
    softmax: Softmax | None = None,
    rows: Array | None = None,
    queries: Array | None = None,
    places: Array | None = None,
    documents: Array | None = None,
) -> Array:
    """Attention weights f32[B, N, T, S] of rotated q[B, T, N, H], k[B, S, K, H].

    Args:
      window, chunk, softmax: as in `attend`.
      rows: int[T], the places of the queries among the keys; 0..T-1 where not given.
      queries: int[T], what `softmax` is told of the queries; 0..T-1 where not given.
      places: int[S], of the keys; 0..S-1 where not given.
      documents: as in `attend`, of all keys.
    """
    T = q.shape[1]
    rows = jnp.arange(T) if rows is None else rows
    mask = causal_mask(rows, k.shape[1] if places is None else places, window, chunk)
    if documents is not None:
        mask = mask & _same_document(documents, rows, places)
    scaled = logits(q, k)
    if softmax is not None:
        return softmax(scaled, mask, jnp.arange(T) if queries is None else queries)
    return jax.nn.softmax(jnp.where(mask, scaled, -jnp.inf), axis=-1)


def _same_document(documents: Array, rows: Array, places: Array | None) -> Array:
    """bool[B, 1, T, S], whether query and key are of one: documents int[B, all keys]."""
    of_keys = documents if places is None else jnp.take(documents, places, axis=1)
    return (jnp.take(documents, rows, axis=1)[:, :, None] == of_keys[:, None, :])[:, None]


def logits(q: Array, k: Array) -> Array:
    """q.k / sqrt(H) of every query and key, unmasked: f32[B, N, T, S].

    One plain matrix product a key head, its group of G = N / K query heads one below the other:
    twice as fast on a CPU as leaving G an axis of its own.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    product = jnp.matmul(
        q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32, precision=precision(q.dtype)
    )
    return (product * H**-0.5).reshape(B, N, T, k.shape[1])


def mix(weights: Array, v: Array) -> Array:
    """Sums of v[B, S, K, H] by weights [B, N, T, S] in v's dtype: [B, T, N, H]."""
    B, N, T, S = weights.shape
    K = v.shape[2]
    grouped = weights.astype(v.dtype).reshape(B, K, -1, S)
    mixed = jnp.matmul(grouped, v.transpose(0, 2, 1, 3), precision=precision(v.dtype))
    return mixed.reshape(B, N, T, -1).transpose(0, 2, 1, 3)


def attend(
    q: Array,
    k: Array,
    v: Array,
    window: int | None = None,
    chunk: int | None = None,
    softmax: Softmax | None = None,
    rows: Array | None = None,
    parts: int = 1,
    documents: Array | None = None,
) -> Array:
    """Mixes values by causal attention: rotated q[B,T,N,H], k and v[B,S,K,H] -> [B,T,N,H].

    Args:
      q, k, v: in the compute dtype; logits and softmax are f32.
      window: a query reads itself and the window - 1 keys before it; None reads all.
      chunk: a query reads keys of its own chunk only.
      softmax: stands in place of the masked softmax.
      rows: int[T], the places of the queries among the keys; 0..T-1 where not given.
      parts: how many devices share a block of queries; these are one's.
      documents: int[B, S], the document that each key is of: a query reads none of others. All are
        of one where not given.
    """
    blocks, rest = _split(q.shape[1], k.shape[1], parts)
    if blocks is None:
        weights = probabilities(q, k, window, chunk, softmax, rows, documents=documents)
        return mix(weights, v)

    # The backward pass goes through a block again; it would hold the logits of all.
    @functools.partial(jax.checkpoint, static_argnums=(2,))
    def of_block(queries: Array, first: Array | int, count: int) -> Array:
        """[B, t, N, H] of queries int[t], which read no keys but first..first+count-1."""
        block = jnp.take(q, queries, axis=1)
        near_k, near_v = (jax.lax.dynamic_slice_in_dim(a, first, count, axis=1) for a in (k, v))
        at, places = queries if rows is None else rows[queries], first + jnp.arange(count)
        weights = probabilities(
            block, near_k, window, chunk, softmax, at, queries, places, documents
        )
        return mix(weights, near_v)

    def all_keys(queries: Array) -> Array:
        return of_block(queries, 0, k.shape[1])

    attend_block = all_keys
    if softmax is None:  # score functions know their own keys, and get all of them
        attend_block = _reading_near(of_block, blocks.shape[1], k.shape[1], window, chunk, rows)
    output = jnp.moveaxis(jax.lax.map(attend_block, blocks), 0, 1)  # [B, blocks, block, N, H]
    output = output.reshape(output.shape[0], -1, *output.shape[3:])
    return jnp.concatenate([output, all_keys(rest)], axis=1) if rest.size else output


def _reading_near(
    of_block: Callable,
    block: int,
    keys: int,
    window: int | None,
    chunk: int | None,
    rows: Array | None,
) -> Callable[[Array], Array]:
    """of_block(queries, first, count) of hardly more keys than a block of queries may read.

    How many must be known to the compiler. Under a window or chunk it is always the same; without,
    it is one of KEY_PARTS counts: of causal attention that leaves out 7/16 of all logits, where 1/2
    may not be read. Queries that do not begin at 0 (`rows`) read all: they follow a cache, or are
    the part of one device, and the others wait for that with the last.
    """
    reach = min((n for n in (window, chunk) if n is not None), default=None)
    if reach is not None:
        count = min(keys, block + reach - 1)

        def reading_reach(queries: Array) -> Array:
            first = queries[0] if rows is None else rows[queries[0]]
            return of_block(queries, jnp.clip(first - reach + 1, 0, keys - count), count)

        return reading_reach
    if rows is not None:
        return lambda queries: of_block(queries, 0, keys)
    counts = [math.ceil(keys * (i + 1) / KEY_PARTS) for i in range(KEY_PARTS)]
    branches = [lambda queries, count=count: of_block(queries, 0, count) for count in counts]

    @jax.checkpoint  # a switch would keep what every branch keeps
    def reading_parts(queries: Array) -> Array:
        enough = jnp.searchsorted(jnp.array(counts), queries[-1] + 1)
        return jax.lax.switch(enough, branches, queries)

    return reading_parts


def sum_over_queries(
    function: Callable[[Array], Any], length: int, keys: int, parts: int = 1
) -> Any:
    """The sum of function(queries int[t]), a tree of arrays, over blocks of 0..length-1.

    Args:
      parts: as in `attend`.
    """
    blocks, rest = _split(length, keys, parts)
    if blocks is None:
        return function(rest)
    add = functools.partial(jax.tree.map, jnp.add)
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, blocks[0]))
    total, _ = jax.lax.scan(lambda sums, block: (add(sums, function(block)), None), start, blocks)
    return add(total, function(rest)) if rest.size else total


def _split(length: int, keys: int, parts: int) -> tuple[Array | None, Array]:
    """int[blocks, block] and the queries that are left; all are left where they are few."""
    queries, block = jnp.arange(length), max(QUERY_BLOCK // parts, 1)
    if keys <= LONG or length < block:
        return None, queries
    whole = length // block * block
    return queries[:whole].reshape(-1, block), queries[whole:]


def key_heads(heads: int, kv_heads: int) -> np.ndarray:
    """int[heads]: the key-value head that each query head reads; neighbours share one."""
    return np.arange(heads) * kv_heads // heads


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """f32 means f32 on every device: without this, GPUs and TPUs would round inputs of products."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
