"""Losses and gradients that are NaN or Inf: seen of every step, and left out where asked for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rope_study.training.settings import TrainSettings

WATCHED = ("loss", "gradient_norm")  # where one of them is not finite, the update is not


@dataclasses.dataclass(eq=False)
class NotFinite(Exception):
    """The run cannot go on.

    Attributes:
      step: at which a metric is not finite.
      metric: which, and its value.
      left_out: how many updates right before it were left out.
    """

    step: int
    metric: str
    value: float
    left_out: int = 0

    def __str__(self) -> str:
        row = f", after {self.left_out} left out in a row" if self.left_out else ""
        return f"the {self.metric.replace('_', ' ')} became {self.value} at step {self.step}{row}"


class Watch:
    """Looks at the metrics of every step, many steps at once, so that devices do not wait."""

    def __init__(self, settings: TrainSettings):
        self._limit = settings.skip_limit if settings.skip_nonfinite else 0
        self._unread: list[tuple[int, dict[str, jax.Array]]] = []
        self._left_out = 0

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes those of a step, still on the devices."""
        self._unread.append((step, {name: metrics[name] for name in WATCHED}))

    def read(self) -> None:
        """Waits for all that were added; NotFinite where the run has to stop."""
        unread, self._unread = jax.device_get(self._unread), []
        for step, metrics in unread:
            wrong = [name for name in WATCHED if not math.isfinite(metrics[name])]
            if wrong and self._left_out >= self._limit:
                raise NotFinite(step, wrong[0], float(metrics[wrong[0]]), self._left_out)
            self._left_out = self._left_out + 1 if wrong else 0


def leave_out(before: Any, after: Any, metrics: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The trainer's state after a step, without its update where that is not finite.

    Args:
      before, after: the states; the optimizer counts the updates that it has made.
      metrics: of the step.

    Returns:
      The state, one step further, and the metrics with `skipped_updates`, of the whole run so far.
    """
    is_finite = jnp.all(jnp.array([jnp.isfinite(metrics[name]) for name in WATCHED]))
    state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, before)
    state = state.replace(step=after.step)
    return state, metrics | {"skipped_updates": state.step - updates_made(state.opt_state)}


def updates_made(opt_state: optax.OptState) -> jax.Array:
    """int32: how many updates AdamW has made."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]
