"""The optimizer: its rates from the first step to the last, and what weight decay leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_study.decoder import parameter_tree, presets, variants
from rope_study.sharding.parameter import Parameter
from rope_study.training import settings
from rope_study.training.optimizer import make_optimizer

SETTINGS = settings.TrainSettings(
    steps=100, learning_rate=1e-2, warmup=10, final_fraction=0.1, weight_decay=0.5, b1=0.9, b2=0.95,
    clip=1.0, checkpoint_every=10, log_every=1,
)  # fmt: skip


@pytest.mark.parametrize("done, rate", [(0, 1e-3), (4, 5e-3), (9, 1e-2), (54, 0.55e-2), (99, 1e-3)])
def test_rates_rise_over_the_warm_up_and_fall_as_a_cosine(done, rate):
    """No step has rate 0: the first of ten has a tenth of the peak."""
    _, schedule = make_optimizer(SETTINGS, presets.tiny())
    np.testing.assert_allclose(schedule(done), rate, rtol=1e-5)


@pytest.mark.parametrize("warmup, steps", [(0, 3), (5, 3), (3, 3)])
def test_short_runs_have_rates_too(warmup, steps):
    short = dataclasses.replace(SETTINGS, warmup=warmup, steps=steps)
    _, schedule = make_optimizer(short, presets.tiny())
    rates = [float(schedule(done)) for done in range(steps)]
    assert all(0 < rate <= 1e-2 * (1 + 1e-6) for rate in rates), rates


@pytest.mark.parametrize(
    "term, names",
    [
        ("qk_norm() + ss_max()", {"layer_scalar", "ss_max_scale", "final_norm", "mlp_norm"}),
        ("learned_rope()", {"layer_scalar", "final_norm"}),
        ("t5_bias()", {"t5_bias"}),
        ("dpe(scales=(1, 2), window=4, selected=True)", {"dpe_pairs"}),
    ],
)
def test_weight_decay_leaves_norms_biases_and_scales_alone(term, names):
    """Without gradients a step only decays: what is not a matrix stays where it was."""
    config = dataclasses.replace(presets.tiny(), layer_scalar=True, post_norms=True)
    _, config = variants.apply(config, term)
    tree = parameter_tree(config)
    is_parameter = lambda node: isinstance(node, Parameter)  # noqa: E731
    params = jax.tree.map(lambda p: jnp.ones(p.shape), tree, is_leaf=is_parameter)
    optimizer, schedule = make_optimizer(SETTINGS, config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    changed = {
        path[-1].key
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if np.any(update)
    }
    all_names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    matrices = {"embedding", "q", "k", "v", "o", "gate", "up", "down"}
    assert changed == matrices
    assert names <= all_names - matrices
    np.testing.assert_allclose(updates["embedding"], -schedule(0) * 0.5, rtol=1e-5)
