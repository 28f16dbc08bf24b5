"""Text from a decoder, greedy or sampled, with the keys of earlier tokens kept in a cache."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.checks import checked
from rope_study.data import Tokenizer
from rope_study.decoder.decoder import Decoder
from rope_study.decoder.inputs import check_length, check_params, check_tokens, check_vocabulary
from rope_study.decoder.layer import KeyValues
from rope_study.decoder.layout import layout_of
from rope_study.errors import UserError
from rope_study.sharding import compiler

Array = jax.Array


@checked
def generate(
    decoder: Decoder,
    params: dict,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Each text with what the decoder makes of it.

    Args:
      decoder, params: as checkpoints.load gives them.
      tokenizer: the checkpoint's, of checkpoints.load_tokenizer.
      texts: prompts; they may differ in length.
      tokens: how many to add to each.
      temperature: 0 takes the likeliest token; 1 samples from the decoder's distribution.
      seed: of the samples.

    Returns:
      Prompts with their continuations, without BOS.

    Raises:
      UserError: as `generate_tokens`, a text that is not valid Unicode, or the tokenizer of
        another model.
    """
    check_vocabulary(decoder.config, tokenizer)
    prompts, weights = tokenizer.encode_batch(texts)
    lengths = weights.sum(axis=1).astype(int)
    rows = generate_tokens(
        decoder, params, prompts, lengths, tokens=tokens, temperature=temperature, seed=seed
    )
    # Vocabularies are padded: ids that the tokenizer does not have are no text.
    return [tokenizer.decode(row[row < tokenizer.vocab_size].tolist()) for row in rows]


@checked
def generate_tokens(
    decoder: Decoder,
    params: dict,
    prompts: np.ndarray,
    lengths: np.ndarray | None = None,
    *,
    tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[np.ndarray]:
    """Each prompt with the ids that follow.

    Args:
      decoder, params: as checkpoints.load gives them.
      prompts: int[B, T], padded on the right.
      lengths: int[B], how many of them are the prompt's; all where not given.
      tokens, temperature, seed: as in `generate`.

    Returns:
      B arrays int[lengths[b] + tokens].

    Raises:
      UserError: no prompt token to begin with, lengths that are not the prompts', an id that the
        model does not have, tokens below 1, a negative temperature, or a model that needs BOS and
        did not get it.
    """
    check_params(decoder.config, params)
    check_tokens(decoder.config, prompts)
    prompts = np.asarray(prompts)
    B, T = prompts.shape
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    if tokens < 1:
        raise UserError(f"tokens={tokens} must be at least 1", "tokens")
    if not temperature >= 0:
        raise UserError(
            f"temperature={temperature} must be at least 0; 0 takes the likeliest", "temperature"
        )
    if not B or lengths.shape != (B,) or lengths.dtype.kind not in "iu" or lengths.max() > T:
        raise UserError(f"lengths={lengths} are not those of prompts {prompts.shape}", "lengths")
    if not lengths.min() > 0:
        raise UserError("a prompt is empty: generation needs at least one token to begin with")
    if T + tokens >= 2**31:
        raise UserError(f"tokens={tokens}: positions are counted in int32", "tokens")
    check_length(decoder.config, int(lengths.max()) + tokens)
    # A cache is whole on every device, and so is the text.
    layout = layout_of(decoder).with_rules(length=())
    rows = layout.fill(B)
    whole = layout if decoder.layout else None
    decoder = Decoder(dataclasses.replace(decoder.config, remat="none"), whole)
    options = compiler.lean_options(params, layout)
    generated = _jitted(tuple(options.items()))(
        decoder, int(lengths.min()), tokens, params, jnp.asarray(prompts[rows], jnp.int32),
        jnp.asarray(lengths[rows]), jnp.float32(temperature), jax.random.key(seed),
    )  # fmt: skip
    rows_out = np.asarray(generated)
    return [rows_out[b, : lengths[b] + tokens] for b in range(B)]


@functools.cache
def _jitted(options: tuple[tuple[str, str], ...]):
    return jax.jit(_generate, static_argnums=(0, 1, 2), compiler_options=dict(options))


def _generate(
    decoder: Decoder,
    first: int,
    tokens: int,
    params: dict,
    prompts: Array,
    lengths: Array,
    temperature: Array,
    key: Array,
) -> Array:
    """int[B, T + tokens]: prompts are read together up to `first`, then token by token."""
    B, T = prompts.shape
    tokens_out = jnp.pad(prompts, [(0, 0), (0, tokens)])
    extend = functools.partial(decoder.apply, {"params": params}, method="extend")
    logits, cache = extend(prompts[:, :first], empty_cache(decoder, params, B, T + tokens), 0)

    def step(carry: tuple, place: Array):
        logits, cache, tokens_out = carry
        next_ids = _choose(logits, temperature, jax.random.fold_in(key, place))
        # Where a prompt goes on longer than the shortest, its own token counts.
        next_ids = jnp.where(place < lengths, tokens_out[:, place], next_ids)
        tokens_out = tokens_out.at[:, place].set(next_ids)
        logits, cache = extend(next_ids[:, None], cache, place)
        return (logits, cache, tokens_out), None

    (_, _, tokens_out), _ = jax.lax.scan(
        step, (logits, cache, tokens_out), jnp.arange(first, T + tokens)
    )
    return (
        tokens_out if decoder.layout is None else decoder.layout.constrain(tokens_out, None, None)
    )


def _choose(logits: Array, temperature: Array, key: Array) -> Array:
    """Ids int[B] for logits f32[B, V]."""
    warm = jnp.maximum(temperature, 1e-6)
    sampled = jax.random.categorical(key, logits / warm)
    return jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def empty_cache(decoder: Decoder, params: dict, rows: int, length: int) -> list[KeyValues]:
    """A cache with room for that many tokens in each row; see Decoder.extend."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    keys = functools.partial(decoder.apply, {"params": params}, method="keys")
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(keys, tokens)
    )
