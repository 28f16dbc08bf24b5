"""Held-out loss: every token's negative log likelihood, kept by window and position."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from rope_study.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out losses in nats.

    Attributes:
      losses: f32[windows, T], the negative log likelihood of every target; windows are
        independent and all begin with BOS, so position t had t + 1 tokens to read.
    """

    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Mean over all tokens."""
        return float(self.losses.mean(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(np.exp(self.loss))

    def difference(self, other: "Evaluation") -> tuple[float, float]:
        """Mean loss minus the other's on the same windows, and its standard error (paired)."""
        by_window = (self.losses - other.losses).mean(axis=1, dtype=np.float64)
        error = by_window.std(ddof=1) / np.sqrt(len(by_window)) if len(by_window) > 1 else np.nan
        return float(by_window.mean()), float(error)


def evaluate(
    decoder: Decoder, params: dict, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Evaluation:
    """Reads every batch once.

    Args:
      decoder: with a layout, whose devices share each batch.
      params: its parameters.
      batches: (windows int32[B, T + 1], weights f32[B]); windows of weight 0 are left out.
    """
    layout = decoder.layout

    def losses(params: dict, windows: jax.Array) -> jax.Array:
        return decoder.apply(
            {"params": params}, windows[:, :-1], windows[:, 1:], method="token_losses"
        )

    # Every host gets all losses.
    run = jax.jit(losses, out_shardings=layout.sharding(None, None))
    kept = []
    for windows, weights in batches:
        kept.append(np.asarray(run(params, layout.place(windows)))[weights > 0])
    return Evaluation(np.concatenate(kept))
