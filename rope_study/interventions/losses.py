"""The loss of every token under interventions: one compiled program, of which edits are arguments.

B batch, T tokens.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rope_study.checks import checked
from rope_study.decoder import Decoder, DecoderConfig, check_tokens
from rope_study.errors import UserError
from rope_study.interventions.changes import Change, apply_changes, changes
from rope_study.interventions.edits import Intervention
from rope_study.probes import datasets
from rope_study.probes.run import in_f32
from rope_study.sharding import Layout, compiler

Array = jax.Array
Options = tuple[tuple[str, Any], ...]


@checked
def token_losses(
    decoder: Decoder,
    params: dict,
    batches: Iterable[np.ndarray],
    interventions: Mapping[str, Intervention | Sequence[Intervention]],
) -> dict[str, np.ndarray]:
    """{name: float64[rows, T - 1]}, the loss of each token but the first, in nats.

    For tasks that score some tokens only; `measure` sums whole texts. Activations are f32.

    Args:
      decoder, params: as checkpoints.load gives them.
      batches: int32[B, T], of one length T.
      interventions: by name, each one or several that act together; () is the plain decoder.

    Raises:
      UserError: as `measure`.
    """
    losses_of = loss_reader(decoder, params)
    rows = list(batches) if np.iterable(batches) else [batches]
    for tokens in rows:
        check_tokens(decoder.config, tokens)
    if len({np.shape(tokens)[1] for tokens in rows}) != 1:
        raise UserError("token_losses: give one batch at least, all of one length T", "batches")
    config = datasets.with_trained_frequencies(decoder.config, params)
    edits = {name: changes(config, chain) for name, chain in interventions.items()}
    return {
        name: np.concatenate([losses_of(change, tokens) for tokens in rows])
        for name, change in edits.items()
    }


def loss_reader(
    decoder: Decoder, params: dict
) -> Callable[[dict[str, Change], np.ndarray], np.ndarray]:
    """(changes, tokens int32[B, T]) -> float64[B, T - 1]."""
    probed, layout = in_f32(decoder, params)
    options = tuple(compiler.scoring_options(params, layout).items())
    run = _compiled(probed.config, layout, options)

    def losses(change: dict[str, Change], tokens: np.ndarray) -> np.ndarray:
        rows, length = tokens.shape
        filled = layout.place(layout.fill_tokens(tokens))
        return np.asarray(run(params, change, filled), np.float64)[:rows, : length - 1]

    return losses


# Kept, as on small models compiling takes longer than running.
@functools.lru_cache(maxsize=8)
def _compiled(config: DecoderConfig, layout: Layout, options: Options) -> Callable:
    """(params, changes, tokens[B, T]) -> f32[B, T - 1], the loss of every target."""

    def run(params: dict, change: dict[str, Change], tokens: Array) -> Array:
        targets = jnp.roll(tokens, -1, axis=1)
        losses: Any = Decoder(config, layout).apply(
            {"params": params}, tokens, targets, apply_changes(change), method="token_losses"
        )
        return losses[:, :-1]  # the last has no target

    return jax.jit(run, out_shardings=layout.sharding(), compiler_options=dict(options))
