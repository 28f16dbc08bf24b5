"""The length of the texts that a model was trained on: kept, shown, and not passed in silence."""

import dataclasses
import importlib
import warnings

import numpy as np
import pytest
import xarray
from commands import run_command
from random_parameters import random_parameters
from test_llama2c import T, write
from tiny_config import get_config

from rope_study import checkpoints, evaluate, interventions, probe, probes
from rope_study.checkpoints import runs
from rope_study.data import load_tokenizer
from rope_study.decoder import Decoder, presets, sampling
from rope_study.training import settings
from rope_study.training.evaluate import evaluate as losses_of

TRAINED = 24
CONFIG = dataclasses.replace(presets.tiny(), trained_length=TRAINED)
PASSAGE = "Don't say 'never', said Ruth. Say 'not yet', said Pavel."


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG), random_parameters(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A run of that length."""
    folder = tmp_path_factory.mktemp("run")
    runs.write_model(folder, CONFIG, load_tokenizer("bytes"))
    (folder / "checkpoints").mkdir()
    with runs.Manager(folder) as manager:
        manager.save(1, {runs.PARAMS: model[1]})
    (folder / "text.txt").write_text(PASSAGE * 40)
    return folder


# --- where it is kept -------------------------------------------------------------------------


def test_a_run_keeps_the_length_of_its_sequences():
    config = get_config()
    config.data.length = 96
    for study in (settings.resolve(config), settings.resolve_one(config)):
        assert {run.decoder.trained_length for run in study.runs} == {96}


def test_it_is_loaded_from_a_run(folder):
    assert runs.read_model(folder).trained_length == TRAINED
    assert runs.read_model(folder, "nope").trained_length == TRAINED


def test_it_is_read_from_hugging_face_and_written_there(tmp_path, model):
    config = dataclasses.replace(CONFIG, bos=2)
    checkpoints.export(Decoder(config), random_parameters(config), tmp_path / "peer")
    assert checkpoints.load(tmp_path / "peer")[0].config.trained_length == TRAINED


def test_it_is_read_from_llama2c(tmp_path):
    write(tmp_path / "model.bin")
    assert checkpoints.load(tmp_path / "model.bin")[0].config.trained_length == T


# --- what goes past it says so ----------------------------------------------------------------


def batch(length):
    return np.ones((1, length), np.int32), np.ones((1, length), np.float32)


PASSING = {
    "run": lambda d, p, n: probes.run(d, p, [batch(n)] * 2, [probes.frequency_usage]),
    "attention_map": lambda d, p, n: probes.attention_map(d, p, batch(n)[0][0], 0, 0),
    "measure": lambda d, p, n: interventions.measure(
        d,
        p,
        [(np.arange(n, dtype=np.int32)[None], batch(n)[1])],
        {"none": interventions.ablate(interventions.band(fastest=0.5))},
        attention=False,
        copies=0,
    ),
    "evaluate": lambda d, p, n: losses_of(d, p, [batch(n + 1)]),
    "generate": lambda d, p, n: sampling.generate_tokens(d, p, batch(n - 4)[0], tokens=4),
}


@pytest.mark.parametrize("name", PASSING)
def test_going_past_it_warns_once(model, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PASSING[name](*model, TRAINED)
        assert caught == []
        PASSING[name](*model, TRAINED + 1)
    (warning,) = caught
    assert "25 tokens are more than the 24 that the model was trained on" in str(warning.message)


def test_an_unknown_length_warns_of_nothing(model):
    decoder = Decoder(dataclasses.replace(CONFIG, trained_length=None))
    with warnings.catch_warnings(action="error"):
        PASSING["generate"](decoder, model[1], 100)


# --- commands ---------------------------------------------------------------------------------


def test_probe_reads_no_more_of_a_text_unless_told_to(folder, tmp_path, capfd):
    for name, more in (("default", []), ("longer", ["--length=40"])):
        arguments = [f"--checkpoint={folder}", f"--string={PASSAGE}", f"--out={tmp_path / name}"]
        with warnings.catch_warnings(record=True) as caught:
            assert not run_command(probe.main, *arguments, *more)
        usage = xarray.load_dataset(tmp_path / name / "frequency_usage.nc")
        assert usage.context == (40 if more else TRAINED)
        assert len(caught) == len(more)
        assert "trained on 24 tokens a text" in capfd.readouterr().err
        page = (tmp_path / name / "index.html").read_text()
        assert "<dt>trained on</dt><dd>24 tokens a text</dd>" in page
    assert warnings.formatwarning(*[caught[0].message, UserWarning, "", 0]).startswith(
        "warning: 40 tokens are more than the 24 that the model was trained on"
    )


def test_evaluate_and_generate_show_it(folder, capfd):
    text = f"--data={folder / 'text.txt'}"
    with pytest.warns(UserWarning, match="48 tokens are more"):
        assert not run_command(evaluate.main, f"--checkpoint={folder}", text)
    shown = capfd.readouterr()
    assert "| 24 " in shown.out and "| 48 * " in shown.out
    assert "* beyond the 24 tokens" in shown.out and "trained on 24 tokens a text" in shown.err
    with pytest.warns(UserWarning, match="25 tokens are more"):  # BOS, "a", and 23
        command = importlib.import_module("rope_study.generate").main
        assert not run_command(command, f"--checkpoint={folder}", "--text=a", "--tokens=23")
    assert "trained on 24 tokens a text" in capfd.readouterr().err
