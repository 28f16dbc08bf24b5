"""The chunked loss equals optax's, with its gradients, on one device and under a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rope_study import sharding
from rope_study.decoder import loss

B, T, D, V = 8, 12, 16, 64


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (B, T, D))
    embedding = jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    weights = jax.random.bernoulli(keys[3], 0.7, (B, T)).astype(jnp.float32)
    return x, embedding, targets, weights


def reference(x, embedding, targets, weights, cap=None):
    logits = x @ embedding.T
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights)


def check(chunked, inputs, cap=None):
    x, embedding, targets, weights = inputs
    expected = jax.value_and_grad(reference, argnums=(0, 1))(x, embedding, targets, weights, cap)
    got = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(x, embedding, targets, weights)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    for gradient, expected_gradient in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)


@pytest.mark.parametrize("chunk", [5, 32, 1024])  # 96 tokens: uneven, even, and one chunk
def test_equals_optax(inputs, chunk):
    check(lambda *args: loss.cross_entropy(*args, None, chunk), inputs)


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", "fsdp=8", "tensor=4,data=2"])
def test_equals_optax_under_a_mesh(inputs, mesh):
    layout = sharding.make_layout(mesh)
    check(lambda *args: loss.cross_entropy(*args, layout, 7), inputs)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "rules",
    [
        {"embed": ("data", "fsdp")},
        {"embed": "tensor", "vocab": None},
        {"embed": "tensor,data", "vocab": "fsdp"},
        {"embed": None, "vocab": "fsdp,tensor"},
        {"vocab": "tensor,fsdp", "embed": "data"},
        {"batch": "fsdp", "embed": "data"},
        {"batch": ("data",)},
        {"batch": None},
    ],
    ids=str,
)
def test_equals_optax_under_any_rules(inputs, rules):
    layout = sharding.make_layout("data=2,fsdp=2,tensor=2", sharding.Rules(**rules))
    check(lambda *args: loss.cross_entropy(*args, layout, 7), inputs)


@pytest.mark.eight_devices
@pytest.mark.parametrize("rows", [1, 3])
def test_equals_optax_where_rows_do_not_divide(inputs, rows):
    x, embedding, targets, weights = inputs
    some = x[:rows], embedding, targets[:rows], weights[:rows]
    layout = sharding.make_layout("data=2,fsdp=2,tensor=2")
    check(lambda *args: loss.cross_entropy(*args, layout, 7), some)


@pytest.mark.eight_devices
@pytest.mark.parametrize("mesh", [None, "fsdp=2,tensor=4"])
def test_capped_logits_equal_optax(inputs, mesh):
    layout = mesh and sharding.make_layout(mesh)
    check(lambda *args: loss.cross_entropy(*args, layout, 7, 3.0), inputs, cap=3.0)


def test_token_losses_equal_optax(inputs):
    x, embedding, targets, _ = inputs
    expected = optax.softmax_cross_entropy_with_integer_labels(x @ embedding.T, targets)
    np.testing.assert_allclose(loss.token_losses(x, embedding, targets, None, 7), expected, 1e-5)


def test_upstream_gradient_scales(inputs):
    x, embedding, targets, weights = inputs
    gradient = jax.grad(lambda x: loss.cross_entropy(x, embedding, targets, weights))
    tripled = jax.grad(lambda x: 3 * loss.cross_entropy(x, embedding, targets, weights))
    np.testing.assert_allclose(tripled(x), 3 * gradient(x), rtol=1e-6)


def test_never_holds_all_logits():
    """No array of the compiled gradient is as large as tokens x vocabulary."""
    x, embedding = jnp.zeros((4, 256, 8)), jnp.zeros((512, 8))
    targets, weights = jnp.zeros((4, 256), jnp.int32), jnp.ones((4, 256))

    def chunked(x, embedding):
        return loss.cross_entropy(x, embedding, targets, weights, None, 64)

    compiled = jax.jit(jax.grad(chunked, argnums=(0, 1))).lower(x, embedding).compile()
    bytes_of_logits = 4 * 256 * 512 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < bytes_of_logits / 2


def test_chunks_are_of_one_size(inputs):
    """9 tokens in chunks of at most 8 are twice 5: as 8 and 1 the last would take as long."""
    x, embedding, targets, _ = inputs
    jaxpr = jax.make_jaxpr(lambda *args: loss.token_losses(*args, None, 8))(
        x[:1, :9], embedding, targets[:1, :9]
    )
    (scan,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    assert (2, 5, D) in [operand.aval.shape for operand in scan.invars]
