"""Causal attention on arrays.

B batch, T queries, S keys, N query heads, K key/value heads, H head_dim. Query head n reads
key/value head n // (N / K): N = K is multi-head, K = 1 multi-query, between them grouped-query.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rope_study.errors import UserError

Array = jax.Array

BACKENDS = ("reference", "cudnn")

# (logits f32[B, N, T, T], mask bool[T, T]) -> attention weights f32[B, N, T, T]: what may stand in
# place of the masked softmax (see rope_study.logits).
Weigh = Callable[[Array, Array], Array]


def causal_mask(length: int, window: int | None = None, chunk: int | None = None) -> Array:
    """bool[T, T], True where query row t may read key column s.

    That is s <= t; with a window, also t - s < window; with a chunk, also t // chunk == s // chunk:
    a query reads its own chunk only, so the first of a chunk reads nothing but itself (Llama 4).
    """
    t, s = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
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
    weigh: Weigh | None = None,
) -> Array:
    """Attention weights f32[B, N, T, T] of rotated q[B, T, N, H], k[B, T, K, H]."""
    B, T, N, _ = q.shape
    return _grouped_probabilities(q, k, window, chunk, weigh).reshape(B, N, T, T)


def _grouped_probabilities(
    q: Array, k: Array, window: int | None, chunk: int | None, weigh: Weigh | None
) -> Array:
    """f32[B, K, G * T, T], the G = N / K heads of a group one below the other."""
    B, T, N, _ = q.shape
    scaled = _grouped_logits(q, k)
    mask = causal_mask(T, window, chunk)
    if weigh is not None:
        return weigh(scaled.reshape(B, N, T, T), mask).reshape(scaled.shape)
    mask = jnp.tile(mask, (N // k.shape[2], 1))
    return jax.nn.softmax(jnp.where(mask, scaled, -jnp.inf), axis=-1)


def logits(q: Array, k: Array) -> Array:
    """q.k / sqrt(H) of every query and key, unmasked: f32[B, N, T, T]."""
    B, T, N, _ = q.shape
    return _grouped_logits(q, k).reshape(B, N, T, T)


def _grouped_logits(q: Array, k: Array) -> Array:
    """f32[B, K, G * T, T], as in `_grouped_probabilities`.

    One plain matrix product a key head: twice as fast on a CPU as leaving G an axis of its own.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    k = k.transpose(0, 2, 3, 1)
    product = jnp.matmul(
        q, k, preferred_element_type=jnp.float32, precision=precision(q.dtype)
    )  # fmt: skip
    return product * H**-0.5


def attend(
    q: Array,
    k: Array,
    v: Array,
    window: int | None = None,
    backend: str = "reference",
    chunk: int | None = None,
    weigh: Weigh | None = None,
) -> Array:
    """Mixes values by causal attention: rotated q[B,T,N,H], k and v[B,T,K,H] -> [B,T,N,H].

    Args:
      q, k, v: in the compute dtype; logits and softmax are f32.
      window: a query reads itself and the window - 1 keys before it; None reads all.
      backend: "reference" (any device) or "cudnn" (NVIDIA, bf16).
      chunk: a query reads keys of its own chunk only; reference backend.
      weigh: stands in place of the masked softmax; reference backend.
    """
    if backend == "cudnn":
        if chunk is not None or weigh is not None:
            raise UserError(
                "the cudnn backend has no chunks and no logit functions;"
                " set config.model.attention='reference'"
            )
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
        )
    if backend != "reference":
        raise UserError(
            f"attention backend {backend!r} is not one of {', '.join(BACKENDS)};"
            " set config.model.attention"
        )
    B, T, N, H = q.shape
    weights = _grouped_probabilities(q, k, window, chunk, weigh).astype(v.dtype)
    mixed = jnp.matmul(weights, v.transpose(0, 2, 1, 3), precision=precision(v.dtype))
    return mixed.reshape(B, N, T, H).transpose(0, 2, 1, 3)


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """f32 means f32 on every device: without this, GPUs and TPUs would round inputs of products."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
