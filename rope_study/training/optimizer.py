"""The optimizer: AdamW with warm-up, cosine decay and gradient clipping."""

import jax
import ml_collections
import optax


def make_optimizer(
    config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW and its schedule from `config.train`; norms, biases and scales do not decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup, config.steps),
        decay_steps=max(config.steps, config.warmup + 1),
        end_value=config.learning_rate * config.final_fraction,
    )
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw), schedule


def _is_matrix(params):
    """True for weights that decay: all but norms, biases and scales, which go by their names."""
    still = ("norm", "bias", "scale")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(word in str(key) for key in path for word in still), params
    )
