"""Attention on NVIDIA's GPUs: the kernel of cuDNN, in bf16, as JAX calls it."""

from typing import Any

import jax
import jax.numpy as jnp

from rope_study.decoder.config import DecoderConfig, LayerSpec

Array = jax.Array


def refusal(config: DecoderConfig, spec: LayerSpec, device: Any) -> str | None:
    """Why cuDNN cannot run the layer, in words; None where it can.

    Args:
      device: a jax.Device; None stands for the newest GPU.
    """
    head_dim = config.of_layer(spec).head_dim
    if config.masks_documents:
        return "it has no masks of documents, which 'reference' and 'splash' have"
    if spec.chunk is not None:
        return "it has no chunks"
    if config.compute_dtype != "bfloat16":
        return f"it needs compute_dtype='bfloat16', not {config.compute_dtype!r}"
    generation = 9 if device is None else _generation(device)
    if generation < 8:
        return f"it needs an NVIDIA GPU from Ampere on, not {getattr(device, 'device_kind', '')}"
    most = 256 if generation >= 9 else 128
    if head_dim > most or head_dim % 8:
        return f"it needs a head_dim that is a multiple of 8 up to {most}, not {head_dim}"
    return None


def _generation(device: Any) -> int:
    """8 for Ampere, 9 for Hopper; 0 for the GPUs of others, whose names are no numbers."""
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return int(major) if major.isdigit() else 0


def attend(q: Array, k: Array, v: Array, window: int | None = None) -> Array:
    """As reference.attend: rotated q[B, T, N, H], k and v[B, T, K, H] in bf16 -> [B, T, N, H]."""
    T = q.shape[1]
    fill = [(0, 0), (0, T % 2), (0, 0), (0, 0)]  # gradients need an even length
    q, k, v = (jnp.pad(a, fill) for a in (q, k, v))
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
    )[:, :T]
