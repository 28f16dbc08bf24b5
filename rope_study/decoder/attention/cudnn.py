"""Attention on NVIDIA's GPUs: the kernel of cuDNN, in bf16, as JAX calls it."""

from typing import Any

import jax
import jax.numpy as jnp

from rope_study.decoder.attention.heads import dividing, own_heads
from rope_study.decoder.config import DecoderConfig, LayerSpec
from rope_study.sharding import Layout

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


def attend(
    q: Array, k: Array, v: Array, window: int | None = None, layout: Layout | None = None
) -> Array:
    """As reference.attend: rotated q[B, T, N, H], k and v[B, T, K, H] in bf16 -> [B, T, N, H].

    Args:
      q, k, v, window: as there.
      layout: devices that share the length share heads here, which costs an exchange of queries
        and one of what they read: cuDNN takes whole texts only, and JAX heads of q that are split
        as those of k are.
    """
    if layout is None or layout.shards("heads") == layout.shards("length") == 1:
        return _whole(q, k, v, window)
    given = dividing(layout, q.shape, k.shape[2])
    axes = tuple(dict.fromkeys(layout.rules.heads + layout.rules.length))
    split = dividing(layout.with_rules(heads=axes, length=()), q.shape, k.shape[2])
    queries = split.spec(("batch", None, "heads", None))
    keys = split.spec(("batch", None, "kv_heads", None))

    N = q.shape[2]

    def of_device(q: Array, k: Array, v: Array) -> Array:
        """The heads of one device: [b, T, n, H]."""
        k, v = (own_heads(a, q.shape[2], N, split) for a in (k, v))
        return _whole(q, k, v, window)

    # What comes before and after keeps its split: exchanged is q, not the wider residual stream.
    axes_of_q = "batch", "length", "heads", None
    output = jax.shard_map(
        of_device,
        mesh=split.mesh,
        in_specs=(queries, keys, keys),
        out_specs=queries,
        check_vma=False,  # the kernel does not say how its results vary over devices
    )(given.constrain(q, *axes_of_q), k, v)
    return given.constrain(output, *axes_of_q)


def _whole(q: Array, k: Array, v: Array, window: int | None) -> Array:
    """`attend` of whole texts."""
    T = q.shape[1]
    fill = [(0, 0), (0, T % 2), (0, 0), (0, 0)]  # gradients need an even length
    q, k, v = (jnp.pad(a, fill) for a in (q, k, v))
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
    )[:, :T]
