"""Attention on TPUs: JAX's own Pallas kernel ("splash"), which never holds all logits of a text.

Tokamax calls the same kernel, but its last version for Python 3.11 has no windows in it, pins
typeguard and brings pydantic, and where the host is not a TPU - where programs for one are
compiled ahead - takes XLA's attention without saying so. B batch, T queries and keys, N query
heads, K key/value heads, H head_dim.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jax.sharding import NamedSharding, PartitionSpec

from rope_study.decoder.attention.heads import dividing, own_heads
from rope_study.decoder.attention.reference import causal_mask
from rope_study.sharding import Layout

Array = jax.Array
Segments = kernels.SegmentIds | None

# Queries, and keys, of one step of the kernel. By compilation for v5e: 512 fits its memory up to
# head_dim 512, in f32 too; at head_dim 256 1024 fits in bf16, 1024 queries by 2048 keys do not.
BLOCK = 512
LANES = 128  # a block is a multiple of this many


def attend(
    q: Array,
    k: Array,
    v: Array,
    window: int | None = None,
    chunk: int | None = None,
    cap: float | None = None,
    layout: Layout | None = None,
    interpret: bool = False,
    documents: Array | None = None,
) -> Array:
    """As reference.attend: rotated q[B, T, N, H], k and v[B, T, K, H] -> [B, T, N, H].

    Args:
      q, k, v: in the compute dtype; products of f32 are f32.
      window, chunk: as in reference.attend.
      cap: logits become cap tanh(logits / cap).
      layout: its devices share batch, heads and length of q; keys and values they read whole.
      interpret: run it as plain JAX on any device, slowly, for tests.
      documents: int[B, T], as in reference.attend; the kernel calls them segments.
    """
    _, T, N, H = q.shape
    layout = None if layout is None else dividing(layout, q.shape, k.shape[2])
    parts = 1 if layout is None else layout.shards("length")
    block = _block(T // parts)
    length = math.ceil(T / (parts * block)) * parts * block
    kernel = _kernel(length, block, parts, window, chunk, cap, interpret)
    run = _exact if q.dtype == jnp.float32 else _call

    def of_device(kernel: Any, q: Array, k: Array, v: Array, segments: Segments) -> Array:
        """The heads and queries of one device: [b, t, n, H]."""
        if layout is not None:
            k, v = (own_heads(a, q.shape[2], N, layout) for a in (k, v))
        of_rows = jax.vmap(run, in_axes=(None, 0, 0, 0, 0))
        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        return of_rows(kernel, q, k, v, segments).swapaxes(1, 2)

    fill = [(0, 0), (0, length - T), (0, 0), (0, 0)]
    segments = None
    if documents is not None:
        # What fills up is of a document of its own, so that its queries have keys too.
        filled = jnp.pad(documents, fill[:2], constant_values=-1)
        segments = kernels.SegmentIds(q=filled, kv=filled)
    if layout is not None:
        queries = layout.spec(("batch", "length", "heads", None))
        keys = layout.spec(("batch", None, "kv_heads", None))
        of_segments = segments and segments._replace(
            q=PartitionSpec(*queries[:2]), kv=PartitionSpec(*keys[:2])
        )
        of_blocks = NamedSharding(layout.mesh, PartitionSpec(None, queries[1]))
        of_device = jax.shard_map(
            of_device,
            mesh=layout.mesh,
            in_specs=(kernel.manual_sharding_spec(of_blocks), queries, keys, keys, of_segments),
            out_specs=queries,
            check_vma=False,  # the kernel does not say how its results vary over devices
        )
    # The kernel does not scale logits. Keys that fill the last block come after every query.
    q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(a, fill) for a in (q, k, v))
    return of_device(kernel, q, k, v, segments)[:, :T]


# --- the kernel -------------------------------------------------------------------------------


def _block(length: int) -> int:
    """The size of the blocks of a text, all alike: at most BLOCK, and little to fill."""
    return math.ceil(length / math.ceil(length / BLOCK) / LANES) * LANES


@dataclasses.dataclass(frozen=True)
class _Mask(kernels.Mask):
    """causal_mask of a text, cut out block by block."""

    length: int
    window: int | None
    chunk: int | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.length

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """bool[t, s] of slices of queries and keys. Most blocks are known by their corners.

        At 128k tokens it takes minutes to compare every query with every key.
        """
        t, s = (np.arange(part.start, part.stop) for part in index)
        reach = min(n for n in (self.length, self.window, self.chunk) if n is not None)
        if t[-1] < s[0] or t[0] - s[-1] >= reach:
            return np.zeros((len(t), len(s)), bool)
        ends = [0, -1]
        if self._allowed(t[ends], s[ends]).all():
            return np.ones((len(t), len(s)), bool)
        return self._allowed(t, s)

    def _allowed(self, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        return np.asarray(causal_mask(t, s, self.window, self.chunk))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def _kernel(
    length: int,
    block: int,
    parts: int,
    window: int | None,
    chunk: int | None,
    cap: float | None,
    interpret: bool,
) -> Any:
    """The kernel for a text in `parts` of queries: one mask for all heads, however many."""
    sizes = [field.name for field in dataclasses.fields(kernels.BlockSizes)]
    blocks: dict[str, Any] = {name: block for name in sizes if name.startswith("block_")}
    with jax.ensure_compile_time_eval():  # a layer that is being traced asks for it
        kernel = kernels.make_splash_mha(
            kernels.MultiHeadMask([_Mask(length, window, chunk)]),
            block_sizes=kernels.BlockSizes(**blocks),
            head_shards=1,
            q_seq_shards=parts,
            attn_logits_soft_cap=cap,
            interpret=interpret,
        )
    return jax.tree.map(np.asarray, kernel)  # which any mesh takes


def _call(kernel: Any, q: Array, k: Array, v: Array, segments: Segments) -> Array:
    """[N, T, H] of one text: q[N, T, H], k and v[K, T, H], segments int[T] of both."""
    return kernel(q, k, v, segments)


@jax.custom_vjp
def _exact(kernel: Any, q: Array, k: Array, v: Array, segments: Segments) -> Array:
    """`_call` in f32. The kernel asks for no precision, and a TPU would round what it multiplies.

    The setting holds while the kernel is traced, which for its gradients is later: hence a rule of
    our own, that runs the kernel forward once more.
    """
    with jax.default_matmul_precision("highest"):
        return kernel(q, k, v, segments)


def _exact_forward(kernel, q, k, v, segments):
    return _exact(kernel, q, k, v, segments), (kernel, q, k, v, segments)


def _exact_backward(saved, g):
    kernel, *inputs, segments = saved
    with jax.default_matmul_precision("highest"):
        return None, *jax.vjp(lambda *qkv: kernel(*qkv, segments), *inputs)[1](g), None


_exact.defvjp(_exact_forward, _exact_backward)
