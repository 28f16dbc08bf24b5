"""Going on from a checkpoint: its weights and shapes, under another encoding, as a new run."""

import json

import jax
import numpy as np
import pytest
import tiny_config
from test_llama2c import write as write_llama2c
from test_tokenizers import write_llama2c as write_tokenizer

from rope_study import checkpoints, sharding
from rope_study.data import load_corpus
from rope_study.errors import UserError
from rope_study.training import settings, trainer
from rope_study.training.metrics import read_metrics


def train(config):
    run = settings.resolve_one(config).runs[0]
    corpus = load_corpus(run.data)
    return run, corpus, *trainer.train(run, corpus, sharding.make_layout())


@pytest.fixture(scope="module")
def config(texts):
    config = tiny_config.get_config()
    config.data.path = str(texts)
    config.train.steps = 2
    return config


@pytest.fixture(scope="module")
def origin(config, tmp_path_factory):
    """A run with shapes of its own; its folder."""
    first = config.copy_and_resolve_references()
    first.workdir = str(tmp_path_factory.mktemp("origin"))
    first.model.layers, first.model.preset, first.model.rotary = 1, "tiny", "rope(theta=500)"
    return train(first)[0].folder


@pytest.fixture
def continued(config, origin, tmp_path):
    """The settings of a run that goes on from it."""
    config = config.copy_and_resolve_references()
    config.workdir, config.train.init_from = str(tmp_path / "run"), str(origin)
    config.model.preset = "small"  # the default
    return config


@pytest.mark.parametrize("encoding", [settings.NONE, "p_rope(p=0.5)"])
def test_the_first_loss_is_the_checkpoints(continued, origin, encoding):
    continued.model.rotary = encoding
    run, corpus, decoder, params = train(continued)
    rotary = None if encoding == settings.NONE else encoding
    begun, weights = checkpoints.load(origin, rotary=rotary)
    windows = corpus.train_batches(run.seed).batch(0)
    losses = begun.apply(
        {"params": weights}, windows[:, :-1], windows[:, 1:], method="token_losses"
    )
    np.testing.assert_allclose(read_metrics(run.folder)[0]["loss"], np.mean(losses), rtol=1e-6)
    assert decoder.config.pattern == begun.config.pattern
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), params, weights)
    assert max(jax.tree.leaves(moved)) > 1e-3
    model = json.loads((run.folder / "model.json").read_text())
    assert model["decoder"]["source"] == f"continued from {origin}"


def test_arrays_of_another_encoding_start_anew_and_are_named(continued, origin, capfd):
    continued.model.rotary = "learned_rope()"
    run, _, _, params = train(continued)
    new = jax.tree.structure(params) != jax.tree.structure(checkpoints.load(origin)[1])
    assert new and "start anew" in capfd.readouterr().err
    checkpoints.load(run.folder)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("model.layers", 3, "layers=3 by config.model, and 1 in "),
        ("model.preset", "gemma_2b", "d_model=2048 by config.model, and 32 in "),
        ("train.init_from", "nowhere", "no run at nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(continued, field, value, problem):
    continued.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=problem):
        settings.resolve(continued)


def test_the_tokenizer_of_a_released_model_is_asked_for(continued, tmp_path):
    path, tokenizer = tmp_path / "model.bin", tmp_path / "tok.bin"
    write_llama2c(path, sizes=(16, 24, 1, 4, 2, 259, 32))
    write_tokenizer(tokenizer, [])
    continued.train.init_from = str(path)
    with pytest.raises(UserError, match=r"'bytes' is not the one that .*: give its own"):
        settings.resolve(continued)
    continued.data.tokenizer = str(tokenizer)
    (run,) = settings.resolve(continued, ["p_rope(p=0.75, theta=10_000)"]).runs
    assert run.decoder.trained_length == 32
    assert "continued from" in str(run.decoder.source)
