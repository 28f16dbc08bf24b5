"""RMSNorm, and the normalisations of queries and keys (QK-norm).

B batch, T length, N query heads, K key/value heads, H head_dim.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rope_study.parameters import Parameter
from rope_study.parts import Part

Array = jax.Array


def rms_norm(x: Array, weight: Array | float, epsilon: float) -> Array:
    """x / rms(x) * (1 + weight) over the last axis, in f32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    return (y * (1 + weight)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class QKNorm(Part):
    """RMSNorm of every query and key over its head_dim, before rotation (Gemma 3, Qwen 3).

    One learned scale 1 + weight for each dimension of the head, shared by the heads, one for
    queries and one for keys. Henry et al. 2020 (2010.04245) is the origin, with an L2 norm.
    """

    kind = "qk_norm"

    def parameters(self, config) -> dict[str, Parameter]:
        """q_norm and k_norm [H]."""
        return {name: Parameter((config.head_dim,), (None,)) for name in ("q_norm", "k_norm")}

    def __call__(
        self, q: Array, k: Array, w: Mapping[str, Array], epsilon: float
    ) -> tuple[Array, Array]:
        """q[B, T, N, H], k[B, T, K, H] -> the same, normalised."""
        return rms_norm(q, w["q_norm"], epsilon), rms_norm(k, w["k_norm"], epsilon)


@dataclasses.dataclass(frozen=True)
class QKNormFixed(Part):
    """x / rms(x) of every query and key, nothing learned (Llama 4, scale-invariant attention).

    Llama 4 normalises AFTER rotation and calls it L2Norm. A rotation keeps the norm of x, so
    without a scale by dimension before and after are the same.
    """

    kind = "qk_norm_fixed"

    def __call__(
        self, q: Array, k: Array, w: Mapping[str, Array], epsilon: float
    ) -> tuple[Array, Array]:
        """q[B, T, N, H], k[B, T, K, H] -> the same, with a root mean square of 1."""
        return rms_norm(q, 0.0, epsilon), rms_norm(k, 0.0, epsilon)


QK_NORMS = {part.kind: part for part in (QKNorm, QKNormFixed)}
