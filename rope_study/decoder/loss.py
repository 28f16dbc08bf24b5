"""Cross entropy over a large vocabulary without ever holding all its logits.

Gemma's 256k logits in f32 are 1 GB for every 1,024 tokens. So tokens go in chunks, and as each
chunk's logits are at hand its part of both gradients is computed there and then: the backward pass
only scales. M tokens, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rope_study.decoder.attention import precision
from rope_study.sharding import Layout
from rope_study.sharding.mesh import MeshAxes

Array = jax.Array

CHUNK = 1024  # tokens of one device whose logits are held at a time


def soft_cap(logits: Array, cap: float | None) -> Array:
    """cap tanh(logits / cap): Gemma 2's and 4's bound on the final logits; None leaves them."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy(
    x: Array,
    embedding: Array,
    targets: Array,
    weights: Array,
    layout: Layout | None = None,
    chunk: int = CHUNK,
    cap: float | None = None,
) -> Array:
    """Weighted sum of -log softmax(x @ embedding.T)[target], in nats.

    Args:
      x: features [B, T, D] in the compute dtype; gradients flow to it.
      embedding: f32[V, D]; cast to x's dtype for the products, its gradient summed in f32.
      targets: int32[B, T].
      weights: f32[B, T], 0 where a token does not count.
      layout: where x is split over batch and length, the embedding over width and vocabulary.
      chunk: tokens of one device whose logits are held at a time.
      cap: bounds the logits, see `soft_cap`.

    Returns:
      f32 scalar.
    """
    losses = token_losses(x, embedding, targets, layout, chunk, cap)
    return jnp.sum(weights * losses)


def token_losses(
    x: Array,
    embedding: Array,
    targets: Array,
    layout: Layout | None = None,
    chunk: int = CHUNK,
    cap: float | None = None,
) -> Array:
    """-log softmax(x @ embedding.T)[target] of every token, f32[B, T]; not differentiated."""
    weights = jnp.zeros(targets.shape, jnp.float32)  # they scale gradients only
    return _run(x, embedding, targets, weights, layout, chunk, cap, gradients=False)[0]


def _forward(x, embedding, targets, weights, layout, chunk, cap):
    losses, dx, d_embedding = _run(
        x, embedding, targets, weights, layout, chunk, cap, gradients=True
    )
    return jnp.sum(weights * losses), (dx, d_embedding)


def _backward(layout, chunk, cap, gradients, g):
    dx, d_embedding = gradients
    return (dx * g).astype(dx.dtype), d_embedding * g, None, None


cross_entropy.defvjp(_forward, _backward)


def _run(x, embedding, targets, weights, layout, chunk, cap, gradients):
    """Losses [B, T] and, where asked for, (dx, d_embedding): all at once, or device by device."""
    if layout is None:
        return _chunks(x, embedding.astype(x.dtype), targets, weights, chunk, cap, gradients)
    rules = layout.whole_where_uneven(batch=x.shape[0], length=x.shape[1]).rules
    token_axes = rules.batch + rules.length
    # Devices with different tokens may share a table by its width, which they gather, and devices
    # with the same tokens by the vocabulary, whose parts they sum; other splits are undone before.
    embed_axes = tuple(axis for axis in rules.embed if axis in token_axes)
    vocab_axes = tuple(axis for axis in rules.vocab if axis not in token_axes)

    def local(x, embedding, targets, weights):
        # The table is gathered once and its gradient scattered once. Under plain GSPMD the
        # compiled TPU program sums the whole gradient over devices again in every chunk.
        embedding = embedding.astype(x.dtype)
        if embed_axes:
            embedding = jax.lax.all_gather(embedding, embed_axes, axis=1, tiled=True)
        losses, dx, d_embedding = _chunks(
            x, embedding, targets, weights, chunk, cap, gradients, vocab_axes
        )
        if gradients and embed_axes:
            d_embedding = jax.lax.psum_scatter(
                d_embedding, embed_axes, scatter_dimension=1, tiled=True
            )
        others = tuple(axis for axis in token_axes if axis not in embed_axes)
        return losses, dx, None if d_embedding is None else _psum(d_embedding, others)

    tokens = PartitionSpec(rules.batch or None, rules.length or None)
    table = PartitionSpec(vocab_axes or None, embed_axes or None)
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(tokens, table, tokens, tokens),
        out_specs=(tokens, tokens, table) if gradients else (tokens, None, None),
        check_vma=False,
    )(x, embedding, targets, weights)


def _psum(a: Array, axes: MeshAxes) -> Array:
    return jax.lax.psum(a, axes) if axes else a


def _chunks(x, embedding, targets, weights, chunk, cap, gradients, vocab_axes=()):
    """The loop over chunks of tokens, on one device (or one device's part of the vocabulary)."""
    B, T = targets.shape
    # Of one size, as many as there must be: a last one hardly filled would take as long as any.
    count = -(-B * T // chunk)
    chunk = -(-B * T // count)

    def split(a: Array) -> Array:
        """[B, T, ...] -> [chunks, chunk, ...]; the tokens added to fill the last weigh nothing."""
        flat = a.reshape(B * T, *a.shape[2:])
        padded = jnp.pad(flat, [(0, -B * T % chunk)] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(-1, chunk, *flat.shape[1:])

    def join(a: Array) -> Array:
        """The inverse of `split`."""
        return a.reshape(-1, *a.shape[2:])[: B * T].reshape(B, T, *a.shape[2:])

    def step(d_embedding, inputs):
        chunk_of_x, chunk_targets, chunk_weights = inputs
        losses, dx, d_part = _one_chunk(
            chunk_of_x, chunk_targets, chunk_weights, embedding, cap, gradients, vocab_axes
        )
        return (d_embedding + d_part if gradients else None), (losses, dx)

    start = jnp.zeros(embedding.shape, jnp.float32) if gradients else None
    inputs = split(x), split(targets), split(weights)
    d_embedding, (losses, dx) = jax.lax.scan(step, start, inputs)
    return join(losses), None if dx is None else join(dx), d_embedding


def _one_chunk(x, targets, weights, embedding, cap, gradients, vocab_axes):
    """One chunk: x[M, D], targets[M], weights[M] -> losses[M], dx[M, D], d_embedding f32[V, D]."""
    matmul = functools.partial(
        jnp.einsum, preferred_element_type=jnp.float32, precision=precision(x.dtype)
    )
    logits = soft_cap(matmul("md,vd->mv", x, embedding), cap)
    first = jax.lax.axis_index(vocab_axes) * embedding.shape[0] if vocab_axes else 0
    hit = targets[:, None] == first + jnp.arange(embedding.shape[0])
    top = jnp.max(logits, axis=-1)
    top = jax.lax.pmax(top, vocab_axes) if vocab_axes else top
    exponentials = jnp.exp(logits - top[:, None])
    normaliser = _psum(jnp.sum(exponentials, axis=-1), vocab_axes)
    target_logit = _psum(jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), vocab_axes)
    losses = top + jnp.log(normaliser) - target_logit
    if not gradients:
        return losses, None, None
    d_logits = weights[:, None] * (exponentials / normaliser[:, None] - hit)
    if cap is not None:
        d_logits *= 1 - jnp.square(logits / cap)  # the derivative of tanh
    d_logits = d_logits.astype(x.dtype)
    dx = _psum(matmul("mv,vd->md", d_logits, embedding), vocab_axes).astype(x.dtype)
    return losses, dx, matmul("mv,md->vd", d_logits, x)
