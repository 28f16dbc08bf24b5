"""Held-out loss: every token's negative log likelihood, and how sure a difference of means is."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from etils import epy

from rope_study.decoder import Decoder, check_length, check_params, each_batch, layout_of
from rope_study.errors import UserError

with epy.lazy_imports():  # a third of a second
    import scipy.special


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out losses in nats.

    Attributes:
      losses: f32[windows, T], the negative log likelihood of every target; windows are
        independent and all begin with BOS, so position t had t + 1 tokens to read.
      weights: f32[windows, T], how much each counts; None where all do.
    """

    losses: np.ndarray
    weights: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """Mean over all tokens that count."""
        if self.weights is None:
            return float(self.losses.mean(dtype=np.float64))
        return float(np.average(self.losses, weights=self.weights.astype(np.float64)))

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return int(self.losses.size if self.weights is None else np.count_nonzero(self.weights))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(np.exp(self.loss))

    def mean_and_error(self) -> tuple[float, float]:
        """Mean loss, and its standard error over windows."""
        return _over_windows(self.losses, self.weights)

    def difference(self, other: "Evaluation") -> tuple[float, float]:
        """Mean loss minus the other's on the same windows, and its standard error (paired)."""
        return _over_windows(self.losses - other.losses, self.weights)


def evaluate(
    decoder: Decoder, params: dict, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Evaluation:
    """Reads every batch once.

    Args:
      decoder: the devices of its layout share each batch.
      params: its parameters.
      batches: (tokens int32[B, T + 1], weights f32[B, T + 1]) of one length, as `held_out_batches`
        gives them: how much each token counts; the first of a row is read and not predicted. Rows
        where none counts are left out, and rows and length are filled up to divide over the
        devices.

    Raises:
      UserError: parameters of another decoder, no tokens to predict, batches of several lengths, or
        texts that decoder.inputs refuses: ids that the model does not have, padding on the left, no
        BOS where it needs it.
    """
    losses_of = loss_reader(decoder, params)
    batch_losses, batch_weights = [], []
    for tokens, weights in each_batch(decoder.config, batches):
        counted = weights[:, 1:].any(axis=1)
        if counted.any():
            _check_alike(tokens, batch_losses)
            batch_losses.append(losses_of(tokens)[counted])
            batch_weights.append(weights[counted, 1:])
    if not batch_losses:
        raise UserError("nothing to evaluate: no token after a first has a weight", "batches")
    weights = np.concatenate(batch_weights)
    return Evaluation(np.concatenate(batch_losses), None if (weights == 1).all() else weights)


def _check_alike(tokens: np.ndarray, before: list[np.ndarray]) -> None:
    """Refuses tokens [B, T + 1] of another length than losses [B, T] of the batches before."""
    if before and tokens.shape[1] - 1 != before[0].shape[1]:
        raise UserError(
            f"a batch has rows of {tokens.shape[1]} tokens, and the first of"
            f" {before[0].shape[1] + 1}: give batches of one length",
            "batches",
        )


def loss_reader(decoder: Decoder, params: dict) -> Callable[[np.ndarray], np.ndarray]:
    """tokens int32[B, T + 1] -> the losses of all but the first, f32[B, T], on every host.

    Parameters are looked at here, tokens not: see `decoder.check_tokens`.
    """
    check_params(decoder.config, params)
    layout = layout_of(decoder)

    def token_losses(params: dict, tokens: jax.Array) -> jax.Array:
        return decoder.apply(  # type: ignore[return-value]
            {"params": params}, tokens[:, :-1], tokens[:, 1:], method="token_losses"
        )

    run = jax.jit(token_losses, out_shardings=layout.sharding(None, None))

    def losses(tokens: np.ndarray) -> np.ndarray:
        check_length(decoder.config, tokens.shape[1] - 1)
        rows, length = tokens.shape
        filled = layout.place(layout.fill_tokens(tokens, targets=1))
        return np.asarray(run(params, filled))[:rows, : length - 1]

    return losses


# --- how sure ---------------------------------------------------------------------------------


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean over all tokens, and its standard error over texts of any lengths.

    sum(sums) / sum(counts), and the first order error of that ratio; for texts of one length the
    standard error of the mean over texts. NaN for a single text.

    Args:
      sums: [texts], over a text's tokens.
      counts: [texts], its tokens.
    """
    mean, error, _ = means_and_errors(sums, counts)
    return float(mean), float(error)


def means_and_errors(
    sums: np.ndarray, counts: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`mean_and_error` of many at once, and half the width of the confidence interval.

    That is Student's t with a degree of freedom less than texts that have tokens.

    Args:
      sums, counts: [..., texts].
      confidence: of the interval.

    Returns:
      [...] each; NaN where no text has tokens, errors also where only one has.
    """
    total, texts = counts.sum(axis=-1), np.count_nonzero(counts, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.sum(axis=-1) / total
        square = np.square(sums - mean[..., None] * counts).sum(axis=-1) * texts / (texts - 1)
        error = np.where(texts < 2, np.nan, np.sqrt(square) / total)
    freedom = np.maximum(texts - 1, 1)
    return mean, error, error * scipy.special.stdtrit(freedom, (1 + confidence) / 2)


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of a few values, one a seed, and half the width of its confidence interval.

    Student's t with n - 1 degrees of freedom; NaN for a single value.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, float("nan")
    error = np.std(values, ddof=1) / np.sqrt(count)
    return mean, float(error * scipy.special.stdtrit(count - 1, (1 + confidence) / 2))


def _over_windows(losses: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    weights = np.ones_like(losses) if weights is None else weights
    sums = (losses * weights).sum(axis=1, dtype=np.float64)
    return mean_and_error(sums, weights.sum(axis=1, dtype=np.float64))
