"""FLOPs by configuration against the products that JAX traces; peaks of chips by device kind."""

import dataclasses
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from rope_study.decoder import Decoder, LayerSpec, presets, variants
from rope_study.decoder.flops import forward_flops, train_flops
from rope_study.sharding import chips

T = 12


def traced_flops(jaxpr) -> int:
    """FLOPs of every product of a program without loops."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
        total += sum(map(traced_flops, jax.extend.core.jaxprs_in_params(equation.params)))
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False, "post_norms": True, "layers": 3},
        {"per_layer_dim": 8, "per_layer_vocab_size": 384},
        {"pattern": (LayerSpec(), LayerSpec(head_dim=32, kv_heads=1, mlp_hidden=48))},
        {"pattern": (LayerSpec(keys_as_values=True), LayerSpec())},
    ],
    ids=["plain", "untied", "per_layer", "other_shapes", "keys_as_values"],
)
def test_equal_the_products_of_the_forward_pass(changes):
    """Of short texts the reference computes all T keys of a query, where T + 1 / 2 may be read."""
    decoder = Decoder(dataclasses.replace(presets.tiny(), scan=False, **changes))
    tokens = jnp.zeros((1, T), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), tokens)
    traced = traced_flops(jax.make_jaxpr(decoder.apply)(params, tokens).jaxpr)
    flops = forward_flops(decoder.config, T)
    flops["attention"] *= T / ((T + 1) / 2)
    assert traced == T * sum(flops.values())


def test_attention_counts_only_keys_that_may_be_read():
    """Windows of 3 of 5 tokens: 1, 2, 3, 3, 3 keys; both layers of tiny, 4 heads of 16."""
    _, config = variants.apply(presets.tiny(), "gemma3(window=3)")
    assert forward_flops(config, 5)["attention"] == pytest.approx(2 * 4 * 4 * 16 * 12 / 5)


def test_a_training_step_is_three_forward_passes():
    forward = sum(forward_flops(presets.tiny(), T).values())
    assert train_flops(presets.tiny(), 8, T) == 3 * forward * 8 * T


def test_gemma_2b_is_six_times_its_parameters_and_attention():
    """2.51e9 parameters, and 18 layers of 8 heads of 256 at 8,192 tokens."""
    flops = train_flops(presets.gemma_2b(), 1, 8192) / 8192
    assert flops == pytest.approx(6 * 2.506e9 + 6 * 18 * 8 * 256 * 8192, rel=1e-3)


def test_chips_are_known_by_their_devices():
    known = chips.chip("TPU v5 lite")
    assert known is chips.chip("TPU v5e") and known.device_flops == 197e12
    assert chips.chip("TPU7x").device_flops == 2307e12 / 2
    assert chips.chip("cpu") is None
