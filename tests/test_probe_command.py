"""The probe command: its files, what it refuses, and that it counts what was given and no more."""

import os
import re
import signal

import numpy as np
import pytest
import tokenizers
import xarray
from commands import run_command
from random_parameters import random_parameters
from tqdm import tqdm

from rope_study import probe, probes, sharding
from rope_study.checkpoints import runs
from rope_study.data import Text, load_tokenizer
from rope_study.decoder import Decoder, presets
from rope_study.errors import UserError
from rope_study.evaluate import main as evaluate
from rope_study.generate import main as generate
from rope_study.reports import model

LONG = "Don't say 'never', said Ruth. Say 'not yet', said Pavel, and say it twice. "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = presets.tiny()
    runs.write_model(folder, config, load_tokenizer("bytes"))
    (folder / "checkpoints").mkdir()
    with runs.Manager(folder) as manager:
        manager.save(1, {runs.PARAMS: random_parameters(config)})
    return folder


def run_probe(*arguments) -> int:
    """The exit status of the command."""
    return run_command(probe.main, *arguments)


def test_command_writes_data_figures_and_page(run, tmp_path, capfd):
    out = tmp_path / "probed"
    arguments = [f"--checkpoint={run}", "--text=domains", f"--out={out}", "--length=64"]
    assert not run_probe(*arguments, "--page_tokens=20", "--page_texts=2")
    usage = xarray.load_dataset(out / "frequency_usage.nc")
    assert usage.text == "18 text(s), domains" and usage.q.shape == (2, 4, 8)
    assert xarray.load_dataset(out / "head_patterns.nc").offset_mass.shape == (2, 4, 8)
    assert set(xarray.load_dataset(out / "head_names.nc").kind.values) == set(
        ("diagonal", "previous", "sink", "local", "delimiter", "semantic")
    )
    drawn = {path.stem for path in (out / "figures").glob("*.png")}
    assert drawn == {
        "fig_03_norms_by_layer", "fig_04_norms_by_head_first_layer",
        "fig_04_norms_by_head_last_layer", "fig_05_attention_patterns", "fig_06_head_usage",
        "fig_10_slow_bands", "fig_13_value_norms", "fig_19_usage_by_domain", "heads_by_kind",
    }  # fmt: skip
    page = (out / "index.html").read_text()
    assert "18 text(s), domains" in page and str(run) in page
    printed = capfd.readouterr().out
    assert "kind        heads  surest" in printed and str(out / "index.html") in printed


def test_given_strings_and_every_probe(run, tmp_path):
    out = tmp_path / "probed"
    probe_names = ",".join(model.PROBES)
    arguments = [f"--checkpoint={run}", f"--string={LONG}", f"--string={LONG * 2}"]
    assert not run_probe(*arguments, f"--probes={probe_names}", f"--out={out}")
    assert {path.stem for path in out.glob("*.nc")} == {*model.PROBES, "head_names"}
    usage = xarray.load_dataset(out / "frequency_usage.nc")
    assert usage.tokens == 2 + 3 * len(LONG)  # each begins with BOS
    assert not (out / "figures" / "fig_19_usage_by_domain.png").exists()


def test_texts_of_one_length_are_read_together(monkeypatch):
    """Padded to few lengths, and measured as if each were read alone."""
    config, tokenizer = presets.tiny(), load_tokenizer("bytes")
    decoder, params = Decoder(config, sharding.one_device()), random_parameters(config)
    texts = [Text("ab" * n) for n in (100, 3, 90, 5, 4)]
    batches = list(model._batches(decoder, tokenizer, texts, 512, 2, tqdm(disable=True)))
    assert [tokens.shape for tokens, _ in batches] == [(2, 64), (2, 201), (2, 201)]
    assert [int(weights.sum()) for _, weights in batches] == [7 + 9, 11 + 181, 201]
    usages = [
        model.probe(
            decoder, params, tokenizer, texts, ["frequency_usage"], batch=batch, page_texts=0
        ).datasets["frequency_usage"]
        for batch in (2, 1)
    ]
    assert usages[0].tokens == usages[1].tokens == 409 and usages[0].context == 201
    np.testing.assert_allclose(usages[0].q, usages[1].q, rtol=1e-5)


def test_ctrl_c_writes_what_was_measured(run, tmp_path, capfd, monkeypatch):
    """The signal comes with the first batch; the second is not read."""
    batches = model._batches

    def and_stop(*arguments):
        for batch in batches(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(model, "_batches", and_stop)
    out = tmp_path / "probed"
    arguments = f"--checkpoint={run}", f"--out={out}", "--batch=1", "--probes=frequency_usage"
    assert run_probe(*arguments, f"--string={LONG}", f"--string={LONG * 2}") == 130
    assert xarray.load_dataset(out / "frequency_usage.nc").tokens == 1 + len(LONG)
    assert "stopped by SIGINT: what was read until then is measured" in capfd.readouterr().err


def test_some_of_many_texts_evenly_spaced(run, tmp_path):
    texts = tmp_path / "a.txt"
    texts.write_text("\n\n".join(LONG * n for n in (1, 2, 3, 4)))
    arguments = f"--checkpoint={run}", f"--text={texts}", "--probes=frequency_usage"
    assert not run_probe(*arguments, "--texts=2", f"--out={tmp_path / 'out'}")
    usage = xarray.load_dataset(tmp_path / "out" / "frequency_usage.nc")
    stripped = [len((LONG * n).rstrip()) for n in (1, 3)]
    assert usage.tokens == 2 + sum(stripped) and usage.text.startswith("2 text(s)")


@pytest.mark.eight_devices
def test_texts_that_fill_up_devices_count_once():
    """Three texts on eight devices, two batches: the same numbers as on one device."""
    config, tokenizer = presets.tiny(), load_tokenizer("bytes")
    params = random_parameters(config)
    texts = [Text(LONG), Text(LONG * 2, "a"), Text("Say it. " * 5, "b")] * 3
    measured = [
        model.probe(Decoder(config, layout), params, tokenizer, texts, ["frequency_usage"], batch=n)
        for layout, n in ((sharding.make_layout("data=8"), 8), (sharding.one_device(), 2))
    ]
    eight_devices, one_device = (f.datasets["frequency_usage"] for f in measured)
    assert eight_devices.tokens == one_device.tokens
    np.testing.assert_allclose(eight_devices.q, one_device.q, rtol=1e-5)
    assert list(measured[0].by_label) == ["a", "b"]
    assert measured[0].by_label["b"].tokens == 3 * 41


def test_without_a_page_the_command_says_why(run, tmp_path, capfd):
    out = tmp_path / "probed"
    arguments = [f"--checkpoint={run}", f"--string={LONG}", f"--out={out}", "--page_texts=0"]
    assert not run_probe(*arguments)
    assert "no index.html: it needs --probes=" in capfd.readouterr().out


def test_more_labels_than_a_figure_shows_are_refused_before_probing():
    texts = [Text(LONG, str(i)) for i in range(31)]
    decoder, tokenizer = Decoder(presets.tiny()), load_tokenizer("bytes")
    with pytest.raises(UserError, match=r"31 labels, and a figure shows at most 30"):
        model.probe(decoder, {}, tokenizer, texts)


def test_surest_heads_are_of_the_kinds_that_there_are():
    names = np.array([["diagonal", "mixed"], ["diagonal", "mixed"]], object)
    named = xarray.Dataset(
        {
            "name": (("layer", "head"), names),
            "score": (("layer", "head"), [[0.6, 0.4], [0.9, np.nan]]),
        },
        coords={"kind": np.array(["diagonal", "sink"], object)},
    )
    assert model.surest_heads(named) == {"diagonal, score 0.90": (1, 0)}
    mixed = named.assign(name=named.name.where(False, "mixed"))
    assert list(model.surest_heads(mixed)) == ["mixed, score 0.90"]


WRONG = {
    "no checkpoint": ([], r"no checkpoint: give one"),
    "no folder": (["--checkpoint={run}"], r"no folder for the results.*set --out"),
    "unknown probe": (
        ["--checkpoint={run}", "--out={out}", "--probes=frequency_use"],
        r"unknown probe 'frequency_use'.*frequency_usage.*set --probes",
    ),
    "two texts": (
        ["--checkpoint={run}", "--out={out}", "--text=default", "--string=a"],
        r"--text and --string both",
    ),
    "no such text": (["--checkpoint={run}", "--out={out}", "--text=defalt"], r"defalt.*default"),
    "too short": (["--checkpoint={run}", "--out={out}", "--string=abc"], r"no text has 16 tokens"),
    "no length": (
        ["--checkpoint={run}", "--out={out}", "--length=1"],
        r"--length=1: 1 is not integer >= 2",
    ),
    "no run": (["--checkpoint={out}", "--out={out}"], r"no run at .*probed, nor any"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_one_line(case, run, tmp_path, capfd):
    arguments, message = WRONG[case]
    out = tmp_path / "probed"
    assert run_probe(*(argument.format(run=run, out=out) for argument in arguments)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not out.exists()


def test_a_tokenizer_is_named_beside_the_checkpoint(run, tmp_path, capfd):
    """Of every command that reads a model; both sizes are said where it is another model's."""
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "To": 1}, "<s>"))
    other.save(str(tmp_path / "mine.json"))
    asked = [f"--checkpoint={run}", f"--tokenizer={tmp_path / 'mine.json'}"]
    for main, more in (
        (probe.main, [f"--out={tmp_path / 'out'}"]),
        (generate, ["--text=To be"]),
        (evaluate, [f"--data={__file__}"]),
    ):
        assert run_command(main, *asked, *more) == 2
        (line,) = error_lines(capfd)
        assert re.search("mine.json' has 2 tokens and the model 384 rows .*; set --tokenizer", line)
    assert not (tmp_path / "out").exists()
    bytes_ = [f"--checkpoint={run}", "--tokenizer=bytes", "--tokens=1", "--text=To be"]
    assert not run_command(generate, *bytes_)
    assert capfd.readouterr().out.startswith("To be")
    assert run_command(generate, *bytes_[:3], "--text=caf\udce9") == 2
    (line,) = error_lines(capfd)
    assert "is not valid Unicode: '\\udce9' at place 3" in line


def error_lines(capfd):
    """What a command printed that failed, without progress bars."""
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]


def test_a_folder_with_files_is_left_alone(run, tmp_path, capfd):
    (tmp_path / "mine.txt").write_text("mine")
    assert run_probe(f"--checkpoint={run}", f"--out={tmp_path}") == 2
    assert "exists and is not empty; nothing was changed" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_every_probe_of_the_command_is_a_probe():
    tokenizer = load_tokenizer("bytes")
    for name, make in model.PROBES.items():
        assert isinstance(make(tokenizer), probes.Probe) and make(tokenizer).name == name
