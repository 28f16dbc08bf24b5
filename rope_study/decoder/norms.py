"""RMSNorm, and the normalisations of queries and keys (QK-norm).

B batch, T length, N query heads, K key/value heads, H head_dim.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rope_study.registry import Component, Registry
from rope_study.sharding.parameter import Parameter

Array = jax.Array

QK_NORMS = Registry("QK-norm")


def normalise(x: Array, epsilon: float) -> Array:
    """x / rms(x) over the last axis, in f32."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)


def rms_norm(x: Array, weight: Array, epsilon: float, offset: float = 1.0) -> Array:
    """x / rms(x) * (offset + weight) over the last axis, in f32, returned in x's dtype."""
    return (normalise(x, epsilon) * (offset + weight.astype(jnp.float32))).astype(x.dtype)


@QK_NORMS.add
@dataclasses.dataclass(frozen=True)
class QKNorm(Component):
    """RMSNorm of every query and key over its head_dim, before rotation (Gemma 3, Qwen 3).

    One learned scale for each dimension of the head, shared by the heads, one for queries and one
    for keys. Henry et al. 2020 (2010.04245) is the origin, with an L2 norm.
    """

    kind = "qk_norm"

    def parameters(self, config) -> dict[str, Parameter]:
        """q_norm and k_norm [H]."""
        scale = Parameter((config.head_dim,), (None,), constant=1 - config.norm_offset, decay=False)
        return {name: scale for name in ("q_norm", "k_norm")}

    def __call__(self, x: Array, w: Mapping[str, Array], name: str, config) -> Array:
        """Queries ("q") or keys ("k") x[B, T, N, H] -> the same, normalised."""
        return rms_norm(x, w[f"{name}_norm"], config.norm_epsilon, config.norm_offset)


@QK_NORMS.add
@dataclasses.dataclass(frozen=True)
class QKNormFixed(Component):
    """x / rms(x) of every query and key, nothing learned (Llama 4, scale-invariant attention).

    Llama 4 normalises AFTER rotation and calls it L2Norm. A rotation keeps the norm of x, so
    without a scale by dimension before and after are the same.
    """

    kind = "qk_norm_fixed"

    def __call__(self, x: Array, w: Mapping[str, Array], name: str, config) -> Array:
        """Queries or keys x[B, T, N, H] -> the same, with a root mean square of 1."""
        return normalise(x, config.norm_epsilon).astype(x.dtype)
