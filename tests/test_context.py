"""Devices that share the length of texts give what one device gives, and hold a part of each."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from random_parameters import random_parameters

from rope_study import data, interventions, probes, sharding
from rope_study.decoder import Decoder, fit_layout, presets
from rope_study.decoder.attention import context, reference
from rope_study.decoder.attention_scores import SCORE_FUNCTIONS, Alibi, ScoreInputs, Tra
from rope_study.decoder.config import LayerSpec
from rope_study.decoder.query_scaling import LogN
from rope_study.decoder.sampling import generate_tokens
from rope_study.errors import UserError
from rope_study.reports.model import PROBES
from rope_study.rotary import nope, rope
from rope_study.training.evaluate import evaluate
from rope_study.training.gradients import check_batch, loss_and_gradients

ROWS, LENGTH = 4, 32
# Local, chunked, and of score functions one of the distance and one that reads everything.
PATTERN = (
    LayerSpec(window=7, query_scale=LogN()),
    LayerSpec(chunk=8),
    LayerSpec(nope(), score_function=Alibi()),
    LayerSpec(nope(), score_function=Tra()),
)
CONFIG = dataclasses.replace(presets.tiny(), layers=4, pattern=PATTERN)
pytestmark = pytest.mark.eight_devices


@pytest.fixture(autouse=True, scope="module")
def short_blocks():
    """Blocks of queries as in long texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "LONG", 16)
        patch.setattr(reference, "QUERY_BLOCK", 4)
        yield


def tokens(length, rows=ROWS):
    return np.random.default_rng(length).integers(0, 256, (rows, length), dtype=np.int32)


def weights(length, rows=ROWS):
    """The second text is shorter."""
    counted = np.ones((rows, length), np.float32)
    counted[1, length // 2 :] = 0
    return counted


def gradients(config, params, layout, accumulate=1):
    decoder = Decoder(config, fit_layout(config, layout))
    init = lambda key: decoder.init(key, jnp.zeros((1, 2), jnp.int32))["params"]  # noqa: E731
    shardings = layout.tree(jax.eval_shape(init, jax.random.key(0)))
    run = jax.jit(
        lambda params, windows: loss_and_gradients(decoder, params, windows, accumulate, shardings)
    )
    return run(jax.device_put(params, shardings), layout.place(tokens(LENGTH + 1)))


@pytest.fixture(scope="module")
def params():
    return random_parameters(CONFIG)


@pytest.fixture(scope="module")
def plain_gradients(params):
    return gradients(CONFIG, params, sharding.one_device())


@pytest.mark.parametrize(
    "mesh, accumulate",
    [("context=8", 1), ("fsdp=2,context=2,tensor=2", 1), ("data=2,context=4", 2)],
)
def test_losses_and_gradients_equal_one_device(mesh, accumulate, params, plain_gradients):
    """But for the order of f32 sums."""
    loss, of_params = gradients(CONFIG, params, sharding.make_layout(mesh), accumulate)
    np.testing.assert_allclose(loss, plain_gradients[0], rtol=5e-7)
    for (path, expected), got in zip(
        jax.tree_util.tree_leaves_with_path(plain_gradients[1]),
        jax.tree.leaves(of_params),
        strict=True,
    ):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * scale, err_msg=f"{path}")


def test_attention_of_every_score_function_equals_one_device():
    random = iter(jax.random.split(jax.random.key(0), 99))
    draw = lambda *shape: jax.random.normal(next(random), shape)  # noqa: E731
    q, k, v = draw(2, LENGTH, 4, 16), draw(2, LENGTH, 2, 16), draw(2, LENGTH, 2, 16)
    x, positions = draw(2, LENGTH, CONFIG.d_model), jnp.arange(LENGTH)[None]
    specs = [LayerSpec(rope(), score_function=f.example(16)) for f in SCORE_FUNCTIONS.values()]
    arrays = [
        {
            name: draw(*p.shape)
            for name, p in (f.parameters(CONFIG) | f.shared_parameters(CONFIG)).items()
        }
        for f in (spec.score_function for spec in specs)
    ]

    def attend(layout):
        def of(spec, w):
            kept = spec.score_function.keep(k, x, w)
            keys = {"k": k, "v": v, "positions": positions, **kept}
            inputs = ScoreInputs(positions, x, q, positions[0], keys, spec.rotary, w)
            return context.attend(spec, layout, q, keys, inputs, None)

        return jax.jit(lambda arrays: list(map(of, specs, arrays)))(arrays)

    split = attend(sharding.make_layout("context=4,tensor=2"))
    for spec, got, expected in zip(specs, split, attend(None), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6, err_msg=f"{spec}")


# --- everything that reads texts --------------------------------------------------------------

SMALL = dataclasses.replace(presets.tiny(), layers=1)


def run_probes(decoder, params):
    """On a text whose length does not divide."""
    made = {name: make(data.ByteTokenizer()) for name, make in PROBES.items()}
    made["spectral"] = probes.spectral(length=8)
    return probes.run(decoder, params, [(tokens(29), weights(29))], list(made.values()))


READERS = {
    "probes": run_probes,
    "attention_maps": lambda decoder, params: probes.attention_maps(decoder, params, tokens(24)[0]),
    "contribution_map": lambda decoder, params: probes.contribution_map(
        decoder, params, tokens(24)[0], layer=0, head=3
    ),
    "collapse": lambda decoder, params: probes.representational_collapse(
        decoder, params, tokens(29)[0], [5, 29]
    ).drop_vars("equal_in_bf16"),
    "token_influence": lambda decoder, params: probes.token_influence(
        decoder, params, tokens(24)[0]
    ),
    "perturbation_spread": lambda decoder, params: probes.perturbation_spread(
        decoder, params, tokens(25)[0], place=3, replacement=1
    ),
    "interventions": lambda decoder, params: interventions.measure(
        decoder,
        params,
        [(tokens(27), weights(27))],
        {"none": interventions.ablate(interventions.band(fastest=0.5))},
        copies=3,
    ),
    "evaluate": lambda decoder, params: (
        evaluate(decoder, params, [(tokens(30), weights(30))]).losses
    ),
    "generate": lambda decoder, params: generate_tokens(decoder, params, tokens(16), tokens=4),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_reads_texts_equals_one_device(read):
    params = random_parameters(SMALL)
    split, plain = (
        read(Decoder(SMALL, layout), params)
        for layout in (sharding.make_layout("context=4,tensor=2"), sharding.one_device())
    )
    for got, expected in zip(numbers(split), numbers(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def numbers(result):
    """The arrays of datasets by name, of one, or of something else."""
    if isinstance(result, dict):
        return [array for dataset in result.values() for array in numbers(dataset)]
    if isinstance(result, xarray.Dataset):
        return [np.asarray(array, np.float64) for array in result.data_vars.values()]
    return [np.asarray(result)]


# --- what a device holds ----------------------------------------------------------------------

LONG = 8192


def compiled(layout):
    """Loss and gradients of one long text."""
    config = dataclasses.replace(SMALL, mlp_hidden=1024)
    decoder = Decoder(config, layout)
    shapes = jax.eval_shape(lambda: random_parameters(config))
    windows = jax.ShapeDtypeStruct((1, LONG + 1), jnp.int32)
    run = lambda params, windows: loss_and_gradients(decoder, params, windows, 1, None)  # noqa: E731
    return jax.jit(run).lower(shapes, windows).compile()


def test_a_device_holds_its_part_of_a_long_text(monkeypatch):
    monkeypatch.setattr(reference, "QUERY_BLOCK", 512)
    split, plain = compiled(sharding.make_layout("context=8")), compiled(sharding.one_device())
    assert not re.findall(rf"\[(?:\d+,)*{LONG},(?:\d+,)*{LONG}\b", split.as_text())
    held, whole = (p.memory_analysis().temp_size_in_bytes for p in (split, plain))
    assert held < whole / 5


def test_lengths_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"length=36 is no multiple of the 8 devices") as error:
        check_batch(8, 36, 1, sharding.make_layout("context=8"))
    assert error.value.argument == "length" and "context" in error.value.remedy


def test_bfloat16_trains():
    """XLA for CPUs fails on some sums of bf16 over devices."""
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    params = random_parameters(config)
    loss, _ = gradients(config, params, sharding.make_layout("context=4,tensor=2"))
    assert np.isfinite(loss)
