"""Parameters of a decoder without its initialisers, which compile slowly."""

import jax.numpy as jnp
import numpy as np

from rope_study.decoder import DecoderConfig, parameter_tree
from rope_study.sharding.parameter import Parameter


def random_parameters(config: DecoderConfig, seed: int = 0, scale: float = 0.2) -> dict:
    """Every array drawn around where it starts, as constants would hide biases and scales."""
    rng = np.random.default_rng(seed)

    def draw(declared: Parameter | dict[str, Parameter]):
        if isinstance(declared, dict):
            return {name: draw(parameter) for name, parameter in declared.items()}
        values = declared.constant + rng.normal(0, scale, declared.shape)
        return jnp.asarray(values, jnp.float32)

    return {name: draw(declared) for name, declared in parameter_tree(config).items()}
