"""The optimizer: AdamW with warm-up, cosine decay and gradient clipping."""

from typing import Any

import jax
import optax

from rope_study.decoder import DecoderConfig, parameter_tree
from rope_study.sharding.parameter import Parameter
from rope_study.training.settings import TrainSettings


def make_optimizer(
    settings: TrainSettings, decoder: DecoderConfig
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW and its schedule, from steps that are done to the rate of the next one.

    Norms, biases and scales of the decoder do not decay.
    """
    rates = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=min(settings.warmup, settings.steps),
        decay_steps=max(settings.steps, settings.warmup + 1),
        end_value=settings.learning_rate * settings.final_fraction,
    )

    def schedule(done: jax.typing.ArrayLike) -> Any:
        # The first step learns too, and the last one at the end of the cosine.
        return rates(done + 1)

    adamw = optax.adamw(
        schedule,
        b1=settings.b1,
        b2=settings.b2,
        weight_decay=settings.weight_decay,
        mask=_decays(decoder),
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip), adamw), schedule


def _decays(decoder: DecoderConfig) -> dict[str, Any]:
    """True for the arrays of the decoder that decay."""
    return jax.tree.map(
        lambda parameter: parameter.decay,
        parameter_tree(decoder),
        is_leaf=lambda node: isinstance(node, Parameter),
    )
