"""Eight devices give what one gives; a checkpoint saved on eight restores on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters

from rope_study import interventions, probes, sharding
from rope_study.checkpoints import runs
from rope_study.decoder import Decoder, fit_layout, presets
from rope_study.errors import UserError
from rope_study.sharding import hlo
from rope_study.training import settings
from rope_study.training.evaluate import evaluate
from rope_study.training.trainer import Trainer

STEPS = 4
pytestmark = pytest.mark.eight_devices


def make_settings():
    config = settings.default()
    config.train.steps, config.train.warmup = STEPS, 1
    return settings.TrainSettings(**config.train.to_dict())


def windows(step):
    return np.random.default_rng(step).integers(0, 256, (8, 33), dtype=np.int32)


def train(layout, compute_dtype="float32"):
    model = dataclasses.replace(presets.tiny(), compute_dtype=compute_dtype)
    decoder = Decoder(model, fit_layout(model, layout))
    trainer = Trainer(decoder, make_settings(), seed=0)
    state, losses = trainer.init(), []
    for step in range(STEPS):
        state, metrics = trainer.step(state, decoder.layout.place(windows(step)))
        losses.append(float(metrics["loss"]))
    return decoder, trainer, state, losses


@pytest.fixture(scope="module")
def one_device_run():
    return train(sharding.one_device())


@pytest.mark.parametrize(
    "rules",
    [
        {"embed": "tensor", "heads": "fsdp", "kv_heads": "fsdp", "mlp": "fsdp", "vocab": "fsdp"},
        {"batch": "data", "length": "fsdp", "head_dim": "fsdp", "embed": None, "layers": "data"},
    ],
    ids=str,
)
def test_losses_under_other_rules_equal_one_device(one_device_run, rules):
    layout = sharding.make_layout("data=2,fsdp=2,tensor=2", sharding.Rules(**rules))
    np.testing.assert_allclose(train(layout)[3], one_device_run[3], rtol=3e-6)


@pytest.fixture(scope="module")
def eight_device_run():
    return train(sharding.make_layout("data=2,fsdp=2,tensor=2"))


def probe(decoder, params):
    rows = windows(99)[:, :-1]
    batch = rows, np.ones(rows.shape, np.float32)
    return probes.run(decoder, params, [batch], [probes.frequency_usage])["frequency_usage"]


def test_initial_weights_do_not_depend_on_the_mesh(one_device_run, eight_device_run):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        one_device_run[1].init().params,
        eight_device_run[1].init().params,
    )


def test_losses_equal_one_device(one_device_run, eight_device_run):
    # The order of f32 sums over devices differs; nothing else may.
    np.testing.assert_allclose(eight_device_run[3], one_device_run[3], rtol=3e-6)
    assert one_device_run[3][-1] < one_device_run[3][0]


def test_parameters_are_really_split(eight_device_run):
    q = eight_device_run[2].params["pattern_0"]["q"]
    assert q.sharding.shard_shape(q.shape) == (2, 32 // 2, 4 // 2, 16)
    mu = eight_device_run[2].opt_state[1][0].mu["embedding"]
    assert mu.sharding.shard_shape(mu.shape) == (384 // 2, 32 // 2)


def test_probe_and_evaluation_equal_one_device(one_device_run, eight_device_run):
    for name in ("q", "k", "v"):
        np.testing.assert_allclose(
            probe(eight_device_run[0], eight_device_run[2].params)[name],
            probe(one_device_run[0], one_device_run[2].params)[name],
            rtol=1e-4,
        )
    batches = [(windows(5), np.ones_like(windows(5)))]
    losses = [
        evaluate(run[0], run[2].params, batches).losses
        for run in (one_device_run, eight_device_run)
    ]
    np.testing.assert_allclose(losses[1], losses[0], atol=2e-4)


def test_checkpoint_of_eight_devices_restores_on_one(one_device_run, eight_device_run, tmp_path):
    _, trainer, state, _ = eight_device_run
    (tmp_path / "checkpoints").mkdir()
    with runs.Manager(tmp_path) as manager:
        trainer.save(manager, STEPS, state)
    with runs.Manager(tmp_path) as manager:
        restored = one_device_run[1].restore(manager)
    assert int(restored.step) == STEPS
    assert len(restored.params["embedding"].sharding.device_set) == 1
    for restored_tree, saved_tree in (
        (restored.params, state.params),
        (restored.opt_state, state.opt_state),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), restored_tree, saved_tree)


def test_bfloat16_compute_keeps_f32_parameters_and_trains():
    _, _, state, losses = train(sharding.make_layout("fsdp=8"), "bfloat16")
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(state.params))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "mesh, message",
    [
        ("fsd=8", r"unknown mesh axis 'fsd'.*'fsdp'"),
        ("fsdp=3", r"does not fit 8 device"),
        ("fsdp=-1,data=-1", r"at most one may be -1"),
        ("fsdp=two", r"'two' of 'fsdp' is not an integer"),
        ("data=0", r"does not fit"),
    ],
)
def test_wrong_meshes_are_refused(mesh, message):
    with pytest.raises(UserError, match=message):
        sharding.make_layout(mesh)


def test_rules_refuse_one_mesh_axis_twice():
    layout = sharding.make_layout("fsdp=8", sharding.Rules(mlp="fsdp"))
    with pytest.raises(UserError, match="twice over the same mesh axis"):
        fit_layout(presets.tiny(), layout)


@pytest.mark.parametrize("axes", ["f", "fsdp,fsdp", ("model",)])
def test_rules_name_axes_of_the_mesh(axes):
    with pytest.raises(UserError, match=r"rules.embed=.*Known: data, fsdp, context, tensor"):
        sharding.Rules(embed=axes)


def test_the_config_sets_rules():
    config = settings.default()
    assert settings.resolve(config).rules == sharding.Rules()
    config.rules.embed, config.rules.vocab = "data,fsdp", ""
    rules = settings.resolve(config).rules
    assert rules == sharding.Rules(embed=("data", "fsdp"), vocab=())


def test_rows_must_divide_over_devices():
    with pytest.raises(UserError, match=r"batch of 6 rows does not divide over 8"):
        sharding.make_layout("fsdp=8").place(np.zeros((6, 3), np.int32))


# --- the same lines on one device and on eight ------------------------------------------------


@pytest.fixture(scope="module")
def one_text():
    """A decoder for one device and for eight, its parameters, and a single text."""
    model = presets.tiny()
    decoders = Decoder(model), Decoder(model, sharding.make_layout("data=2,fsdp=2,tensor=2"))
    return decoders, random_parameters(model), windows(0)[:1]


@pytest.mark.parametrize(
    "read",
    [
        lambda decoder, params, text: decoder.apply({"params": params}, text)[0],
        lambda decoder, params, text: decoder.apply(
            {"params": params}, text[:, :-1], text[:, 1:], method="loss"
        ),
        lambda decoder, params, text: (
            evaluate(decoder, params, [(text, np.ones(text.shape))]).losses
        ),
        lambda decoder, params, text: (
            interventions.measure(
                decoder,
                params,
                [(text, np.ones(text.shape, np.float32))],
                {"none": interventions.ablate(interventions.band(fastest=0.5))},
                copies=3,
            )
            .drop_vars("intervention")
            .to_array()
        ),
    ],
    ids=["apply", "loss", "evaluate", "measure"],
)
def test_one_text_reads_the_same_on_eight_devices(one_text, read):
    (one, eight), params, text = one_text
    np.testing.assert_allclose(read(eight, params, text), read(one, params, text), 1e-4, 1e-5)


@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=4", "data=2,fsdp=2,context=2"])
def test_looking_tokens_up_makes_no_table_and_no_text_whole(mesh):
    """Forth and back, devices get each other's tokens, and pass on what they found for them."""
    config = presets.tiny()
    layout = fit_layout(config, sharding.make_layout(mesh))
    trainer = Trainer(Decoder(config, layout), make_settings(), seed=0)
    params, tokens = trainer.init().params, layout.place(windows(0)[:, :-1])

    def total(params, tokens):
        return jnp.sum(trainer.decoder.apply({"params": params}, tokens, method="embed") ** 2)

    program = hlo.instructions(jax.jit(jax.grad(total)).lower(params, tokens).compile().as_text())
    exchanges = hlo.collectives(program, 8)
    gathered = [e.size for e in exchanges if e.kind == "all-gather"]
    table, per_shard = params["embedding"].nbytes, layout.shards("embed")
    summed = [e.size for e in exchanges if e.kind in ("all-reduce", "reduce-scatter")]
    assert gathered and max(gathered) <= tokens.nbytes
    assert max(summed, default=0) <= table / per_shard
