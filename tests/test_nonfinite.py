"""Losses that are NaN or Inf: where they began, what is left out, and what the run says."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import check_one_line, run_command
from random_parameters import random_parameters

from rope_study import checkpoints, sharding, study
from rope_study.data import DataSettings, load_corpus
from rope_study.decoder import Decoder, presets
from rope_study.training import diagnosis, gradients
from rope_study.training.metrics import read_metrics

CONFIG = "--config=tests/tiny_config.py"
LAYOUT = sharding.one_device()
DECODER = Decoder(presets.tiny(), LAYOUT)
WINDOWS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 9)))


@pytest.fixture
def spoil(monkeypatch, texts):
    """Makes the loss of some steps' batches NaN."""

    def make(*steps):
        settings = DataSettings(str(texts), "bytes", held_out=0.1, length=32, batch_size=8)
        batches = load_corpus(settings).train_batches(seed=0)
        spoiled = jnp.asarray(np.stack([batches.rows(step, 0, 8) for step in steps]))
        of_rows = gradients._of_rows

        def spoiling(decoder, params, batch, targets):
            factor = jnp.where((spoiled == batch).all((1, 2)).any(), jnp.nan, 1.0)
            loss, grads = of_rows(decoder, params, batch, targets)
            return loss * factor, jax.tree.map(lambda array: array * factor, grads)

        monkeypatch.setattr(gradients, "_of_rows", spoiling)

    return make


# --- where it began ---------------------------------------------------------------------------


def changed(group, name, change):
    """Parameters of which that array is changed."""
    params = random_parameters(DECODER.config)
    if name is None:
        return params | {group: change(params[group])}
    return params | {group: params[group] | {name: change(params[group][name])}}


def fill(layer, value):
    """Puts a value into the arrays of one layer."""
    return lambda array: array.at[layer].set(value)


@pytest.mark.parametrize(
    "group, name, change, where",
    [
        ("pattern_0", "q", fill(1, np.nan), "made parameters .* not finite, such as pattern_0/q$"),
        ("pattern_0", "q", fill(1, 3e38), "^layer 1 is the first that is not finite, at q$"),
        ("pattern_0", "k", fill(0, 3e38), "^layer 0 is the first that is not finite, at k$"),
        ("pattern_0", "o", fill(1, 3e38), "^layer 1 is the first .* not finite, at residual$"),
        ("final_norm", None, lambda a: a + 3e38, "the loss of what the last one gives is not$"),
        ("embedding", None, lambda a: a * 1e25, "loss is finite, .* gradient of layer 1 is the"),
        ("pattern_0", "mlp_norm", lambda a: a * 0, "again all is finite"),
    ],
)
def test_the_first_that_is_not_finite_is_named(group, name, change, where):
    params = changed(group, name, change)
    shardings = jax.tree.map(lambda array: array.sharding, params)
    found = diagnosis.first_not_finite(DECODER, params, WINDOWS, 1, shardings)
    assert re.search(where, found), found


# --- a run ------------------------------------------------------------------------------------


def test_a_run_stops_and_says_where_it_began_and_what_is_saved(tmp_path, train_in, spoil, capfd):
    """Also where the step is not logged."""
    spoil(3)
    folder = tmp_path / "run"
    assert train_in(folder, "--config.train.log_every=10") == 2
    check_one_line(
        capfd,
        "the loss became nan at step 3: every layer is finite, and the loss of what the last one"
        r" gives is not; the last good checkpoint is step 2 \(skip_nonfinite=True leaves such"
        r" updates out\); set config\.train\.learning_rate$",
    )
    assert checkpoints.runs.Manager(folder).steps() == [2]
    assert not train_in(folder, "--config.train.skip_nonfinite=True")
    assert [row["skipped_updates"] for row in read_metrics(folder)[1:]] == [0, 1, 1, 1]


def test_updates_are_left_out_and_counted_over_a_kill(tmp_path, train_in, spoil):
    """A spoiled step changes neither parameters nor the optimizer, and JSON stays JSON."""
    spoil(1, 2, 4)
    skip = "--config.train.skip_nonfinite=True", "--config.train.skip_limit=2"
    every = "--config.train.checkpoint_every=1", "--config.train.keep_last=9"
    folder = tmp_path / "run"
    assert not train_in(folder, *skip, *every)

    def params(step):
        return checkpoints.load(folder, step=step)[1]

    for before, after, same in ((1, 2, True), (2, 3, True), (3, 4, False), (4, 5, True)):
        pairs = zip(jax.tree.leaves(params(before)), jax.tree.leaves(params(after)), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs) == same
    for step in ("5", "6"):  # counted on from a checkpoint, as after a kill
        shutil.rmtree(folder / "checkpoints" / step)
    assert not train_in(folder, *skip)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["skipped_updates"] for row in rows] == [0, 1, 2, 2, 3, 3]
    assert [row["loss"] is None for row in rows] == [False, True, True, False, True, False]
    assert math.isnan(read_metrics(folder)[1]["loss"])


def test_too_many_in_a_row_stop_the_run(tmp_path, train_in, spoil, capfd):
    spoil(1, 3, 4)
    skip = "--config.train.skip_nonfinite=True", "--config.train.skip_limit=1"
    assert train_in(tmp_path / "run", *skip) == 2
    check_one_line(capfd, "nan at step 4, after 1 left out in a row: .* is step 4; set config")


def test_a_study_says_how_many_updates_were_left_out(tmp_path, texts, spoil):
    """Curves and the last training loss are of the steps that counted."""
    spoil(2, 5)
    where = f"--config.workdir={tmp_path / 'run'}", f"--config.data.path={texts}"
    small = "--config.model.layers=1", "--config.encodings=('nope',)"
    assert not run_command(study.main, CONFIG, *where, *small, "--config.train.skip_nonfinite=True")
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["encodings"]
    assert row["skipped_updates"] == 2
    assert row["train_loss"] == read_metrics(tmp_path / "run" / "nope_seed0")[4]["loss"]
    assert "updates left out" in (tmp_path / "run" / "report.html").read_text()
