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
        differences = (self.losses - other.losses).sum(axis=1, dtype=np.float64)
        return mean_and_error(differences, np.full(len(differences), self.losses.shape[1]))


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean over all tokens, and its standard error over texts of any lengths.

    sum(sums) / sum(counts), and the first order error of that ratio; for texts of one length the
    standard error of the mean over texts. NaN for a single text.

    Args:
      sums: [texts], over a text's tokens.
      counts: [texts], its tokens.
    """
    mean = sums.sum() / counts.sum()
    texts = np.count_nonzero(counts)
    if texts < 2:
        return float(mean), float("nan")
    square = np.square(sums - mean * counts).sum() * texts / (texts - 1)
    return float(mean), float(np.sqrt(square) / counts.sum())


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
