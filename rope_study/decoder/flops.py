"""FLOPs of a decoder's products by its configuration: of a token, of a training step.

A product of [M, K] and [K, N] has 2 M K N. Each product of the model counts once: not what
`remat` computes again, and of attention only the keys that a query may read, so a causal text
counts half of its square. What norms, softmax, rotations and score functions add is left out.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rope_study.decoder.config import DecoderConfig
from rope_study.decoder.decoder import parameter_tree
from rope_study.decoder.query_scaling import keys_read

# By part, the arrays that every token is multiplied with.
PRODUCTS = {
    "projections": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "per_layer_inputs": ("per_layer_projection", "per_layer_gate", "per_layer_out"),
}


def forward_flops(config: DecoderConfig, length: int) -> dict[str, float]:
    """FLOPs of one token's forward pass by part, the mean over a text of `length` tokens.

    Parts: those of PRODUCTS, "unembedding", and "attention", which is q.k and the sum of values.
    """
    arrays: dict[Any, Any] = flatten_dict(parameter_tree(config))
    flops = {
        part: 2.0 * sum(math.prod(p.shape) for path, p in arrays.items() if path[-1] in names)
        for part, names in PRODUCTS.items()
    }
    flops["unembedding"] = 2.0 * config.vocab_size * config.d_model
    flops["attention"] = 0.0
    for spec in config.layer_specs:
        shapes = config.of_layer(spec)
        keys = keys_read(jnp.arange(length), spec.window, spec.chunk)
        mean_keys = float(np.mean(np.asarray(keys), dtype=np.float64))
        flops["attention"] += 4.0 * shapes.heads * shapes.head_dim * mean_keys
    return flops


def train_flops(config: DecoderConfig, rows: int, length: int) -> float:
    """FLOPs of a training step on `rows` of `length` tokens: forward once, backward twice that."""
    return 3 * sum(forward_flops(config, length).values()) * rows * length
