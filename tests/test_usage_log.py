"""Frequency usage while a run trains: what is read, that it goes on, and nothing else changes."""

import os
import signal

import jax
import numpy as np
import pytest
import xarray
from commands import run_command

from rope_study import checkpoints, figures, probes, study, train
from rope_study.data import DataSettings, load_corpus
from rope_study.training import usage_log
from rope_study.training.metrics import MetricsLog, read_metrics

CONFIG = "--config=tests/tiny_config.py"
EVERY = "--config.train.probe_every=2"
SMALL = "--config.model.layers=1"
KINDS = "--config.model.pattern=gemma2(window=8)", "--config.model.layers=3"  # of layers, two


@pytest.fixture(scope="module")
def train_in(texts):
    """Trains in a folder, five steps with checkpoints after 3 and 5; gives the exit status."""

    def start(folder, *arguments):
        where = f"--config.workdir={folder}", f"--config.data.path={texts}"
        steps = "--config.train.steps=5", "--config.train.checkpoint_every=3"
        return run_command(train.main, CONFIG, *steps, *where, *arguments)

    return start


@pytest.fixture(scope="module")
def probed(train_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed") / "run"
    assert not train_in(folder, EVERY, *KINDS)
    return folder


def test_it_is_the_probe_of_the_parameters_at_each_step(probed, texts):
    usage = usage_log.read_usage(probed)
    assert usage.step.values.tolist() == [0, 2, 4, 5]
    settings = DataSettings(str(texts), "bytes", held_out=0.1, length=32, batch_size=8)
    batches, text = load_corpus(settings).held_out_texts(usage_log.WINDOWS, 8)
    decoder, params = checkpoints.load(probed)
    expected = probes.run(decoder, params, batches, [probes.frequency_usage], text=text)
    last = usage.sel(step=5).drop_vars(["step", "kind"])
    xarray.testing.assert_allclose(last, expected["frequency_usage"], rtol=1e-5)
    assert last.attrs == expected["frequency_usage"].attrs
    assert not np.allclose(usage.q.sel(step=0), usage.q.sel(step=5), rtol=1e-2)
    assert usage.kind.values.tolist() == [0, 1, 0]  # the second is global


def test_a_stopped_run_goes_on_to_the_same_file(probed, train_in, tmp_path, monkeypatch):
    """From step 3; what was read at step 4 and not written is read again, nothing twice."""
    write = MetricsLog.write

    def and_stop(log, step, scalars):
        write(log, step, scalars)
        if step == 3:  # is written while step 4 runs
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", and_stop)
        assert train_in(folder, EVERY, *KINDS) == 130
    assert usage_log.read_usage(folder).step.values.tolist() == [0, 2]
    assert not train_in(folder, EVERY, *KINDS)
    xarray.testing.assert_identical(usage_log.read_usage(folder), usage_log.read_usage(probed))


def test_probing_changes_nothing_that_is_trained(probed, train_in, tmp_path):
    folder = tmp_path / "run"
    assert not train_in(folder, *KINDS)
    assert usage_log.read_usage(folder) is None
    losses = [[row["loss"] for row in read_metrics(at)] for at in (folder, probed)]
    assert losses[0] == losses[1]
    params = [checkpoints.load(at)[1] for at in (folder, probed)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    # A run that has ended has nothing left to look at.
    assert not train_in(folder, EVERY, *KINDS)
    assert usage_log.read_usage(folder) is None


def test_a_damaged_file_is_named_and_training_goes_on(train_in, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    assert not train_in(folder, EVERY, SMALL)
    (folder / usage_log.FILE).write_bytes(b"no NetCDF")
    os.rename(folder / "checkpoints" / "5", tmp_path / "5")
    assert not train_in(folder, EVERY, SMALL)
    assert "usage_by_step.nc is damaged" in capfd.readouterr().err
    assert (folder / "damaged" / usage_log.FILE).exists()
    assert usage_log.read_usage(folder).step.values.tolist() == [4, 5]


def test_learned_frequencies_are_those_of_each_step(train_in, tmp_path):
    folder = tmp_path / "run"
    assert not train_in(folder, EVERY, SMALL, "--config.model.rotary=learned_rope")
    usage = usage_log.read_usage(folder)
    assert usage.inverse_frequency.dims == ("step", "layer", "pair")
    assert (usage.inverse_frequency.diff("step") != 0).any()
    assert figures.bands_over_steps(usage)


def test_the_report_of_a_study_shows_how_bands_formed(texts, tmp_path):
    """The mean over seeds."""
    where = f"--config.workdir={tmp_path}", f"--config.data.path={texts}", EVERY
    seeds = "--config.encodings=('rope',)", "--config.seeds=(0, 1)"
    assert not run_command(study.main, CONFIG, *where, SMALL, *seeds, "--config.train.steps=2")
    assert (tmp_path / "figures" / "bands_over_steps_rope_theta10000.png").exists()
    assert "How the bands formed" in (tmp_path / "report.html").read_text()
