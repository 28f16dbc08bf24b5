"""Scales on the queries: q_i -> s_i q_i, so that logits_ij -> s_i logits_ij.

They ride on q and therefore work with every attention backend. Here n_i is the number of keys
that query i reads: position + 1, or fewer where a layer has a window or a chunk.
"""

import abc
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rope_study.errors import UserError
from rope_study.registry import Component, Registry
from rope_study.sharding.parameter import Parameter

Array = jax.Array

QUERY_SCALES = Registry("query scale")


class QueryScale(Component, abc.ABC):
    """Base class of the scales."""

    @abc.abstractmethod
    def scale(self, positions: Array, keys: Array, w: Mapping[str, Array], head_dim: int) -> Array:
        """The factors f32, broadcastable to [B, T, N].

        Args:
          positions: int[B or 1, T].
          keys: int[B or 1, T], how many keys each query reads.
          w: the layer's arrays.
          head_dim: H.
        """

    def __call__(self, q: Array, positions: Array, keys: Array, w: Mapping[str, Array]) -> Array:
        """q[B, T, N, H] times its scale, in f32 with one cast at the end."""
        scale = self.scale(positions, keys, w, q.shape[-1])
        return (q.astype(jnp.float32) * scale[..., None]).astype(q.dtype)


def keys_read(positions: Array, window: int | None, chunk: int | None) -> Array:
    """How many keys the query at each position reads, itself included: int[B or 1, T]."""
    count = positions + 1 if chunk is None else positions % chunk + 1
    return count if window is None else jnp.minimum(count, window)


@QUERY_SCALES.add
@dataclasses.dataclass(frozen=True)
class LogN(QueryScale):
    """LogN scaling, nothing learned: s_i = log n_i, natural logarithm (Chiang & Cholak 2022).

    With train_length = L it is Qwen's: s_i = max(1, log n_i / log L), which changes nothing up to
    L and is meant for a trained model at evaluation. Without, query 0 has s = 0: it has one key to
    read, so nothing is lost.
    """

    kind = "log_n"
    train_length: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.train_length is not None and self.train_length < 2:
            raise UserError(f"log_n: train_length={self.train_length} must be at least 2")

    def scale(self, positions, keys, w, head_dim):
        """f32[B or 1, T, 1]."""
        log_n = jnp.log(keys.astype(jnp.float32))[..., None]
        if self.train_length is None:
            return log_n
        return jnp.maximum(1.0, log_n / jnp.log(float(self.train_length)))


@QUERY_SCALES.add
@dataclasses.dataclass(frozen=True)
class SSMax(QueryScale):
    """Scalable-softmax (Nakanishi 2025, 2501.19399): s_i = s_h log n_i, s_h learned by head.

    Softmax to the base n^s: attention does not flatten as the context grows. n must be the number
    of keys of that query, i + 1: the length of the sequence would let the future in.
    """

    kind = "ss_max"
    start: float = 1.0  # TabICL starts s at 1; other ports near 0.43

    def parameters(self, config) -> dict[str, Parameter]:
        """ss_max_scale [N]."""
        return {
            "ss_max_scale": Parameter((config.heads,), ("heads",), constant=self.start, decay=False)
        }

    def scale(self, positions, keys, w, head_dim):
        """f32[B or 1, T, N]."""
        return w["ss_max_scale"] * jnp.log(keys.astype(jnp.float32))[..., None]


@QUERY_SCALES.add
@dataclasses.dataclass(frozen=True)
class Llama4Temperature(QueryScale):
    """Llama 4's temperature: s_i = 1 + factor log(1 + floor((position + 1) / floor)).

    Llama 4 has it on its NoPE layers only, where the whole context is read. It is 1 for the first
    `floor` - 1 positions, so short contexts are as without.
    """

    kind = "llama4_temperature"
    factor: float = 0.1  # attn_scale in the released configuration
    floor: int = 8192  # floor_scale in the released configuration

    def __post_init__(self):
        super().__post_init__()
        if self.floor < 1:
            raise UserError(f"llama4_temperature: floor={self.floor} must be at least 1")

    def scale(self, positions, keys, w, head_dim):
        """f32[B or 1, T, 1]."""
        steps = ((positions + 1) // self.floor).astype(jnp.float32)
        return (1 + self.factor * jnp.log1p(steps))[..., None]


@QUERY_SCALES.add
@dataclasses.dataclass(frozen=True)
class LogitScale(QueryScale):
    """logits = factor q.k in place of q.k / sqrt(H): one number for all queries.

    Gemma 4 has factor 1 with QK-norm; Gemma 2 27B has 1 / sqrt(144) with H = 128.
    """

    kind = "logit_scale"
    factor: float = 1.0

    def scale(self, positions, keys, w, head_dim):
        """f32[1, 1, 1]."""
        return jnp.full((1, 1, 1), self.factor * head_dim**0.5, jnp.float32)
