"""Random parameters by NumPy, as the decoder's own initialisers take seconds to compile."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rope_study.decoder import Decoder


def random_parameters(config, scale=0.2, seed=0):
    """N(0, scale^2), around 1 where a norm multiplies: the same for one configuration and seed."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    random, norm = np.random.default_rng(seed), 1 - config.norm_offset

    def draw(path, leaf):
        mean = norm if "norm" in jax.tree_util.keystr(path) else 0
        return jnp.asarray(mean + random.normal(0, scale, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed)["params"])
