"""Causal attention on arrays.

B batch, T queries, S keys, N query heads, K key/value heads, H head_dim. Query head n reads
key/value head n // (N / K): N = K is multi-head, K = 1 multi-query, between them grouped-query.
"""

import jax
import jax.numpy as jnp

from rope_study.errors import UserError

Array = jax.Array

BACKENDS = ("reference", "cudnn")


def causal_mask(length: int, window: int | None = None) -> Array:
    """bool[T, T], True where query row t may read key column s: s <= t, and t - s < window."""
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def probabilities(q: Array, k: Array, window: int | None = None) -> Array:
    """Attention weights f32[B, N, T, T] of rotated q[B, T, N, H], k[B, T, K, H]."""
    B, T, N, H = q.shape
    grouped = q.reshape(B, T, k.shape[2], -1, H)
    logits = jnp.einsum(
        "btkgh,bskh->bkgts", grouped, k,
        preferred_element_type=jnp.float32, precision=precision(q.dtype),
    )  # fmt: skip
    logits = jnp.where(causal_mask(T, window), logits * H**-0.5, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1).reshape(B, N, T, T)


def attend(
    q: Array, k: Array, v: Array, window: int | None = None, backend: str = "reference"
) -> Array:
    """Mixes values by causal attention: rotated q[B,T,N,H], k and v[B,T,K,H] -> [B,T,N,H].

    Args:
      q, k, v: in the compute dtype; logits and softmax are f32.
      window: a query reads itself and the window - 1 keys before it; None reads all.
      backend: "reference" (any device) or "cudnn" (NVIDIA, bf16).
    """
    if backend == "cudnn":
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
    weights = probabilities(q, k, window).astype(v.dtype).reshape(B, k.shape[2], -1, T, T)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, v, precision=precision(v.dtype))
    return mixed.reshape(B, T, N, H)


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """f32 means f32 on every device: without this, GPUs and TPUs would round inputs of products."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
