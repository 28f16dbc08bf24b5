"""The probe command: its files, what it refuses, and that it counts what was given and no more."""

import re

import numpy as np
import pytest
import xarray
from commands import run_command
from random_parameters import random_parameters

from rope_study import probe, probes, sharding
from rope_study.checkpoints import runs
from rope_study.data import Text, load_tokenizer
from rope_study.decoder import Decoder, presets
from rope_study.errors import UserError
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
    every = ",".join(model.PROBES)
    arguments = [f"--checkpoint={run}", f"--string={LONG}", f"--string={LONG * 2}"]
    assert not run_probe(*arguments, f"--probes={every}", f"--out={out}")
    assert {path.stem for path in out.glob("*.nc")} == {*model.PROBES, "head_names"}
    usage = xarray.load_dataset(out / "frequency_usage.nc")
    assert usage.tokens == 2 + 3 * len(LONG)  # each begins with BOS
    assert not (out / "figures" / "fig_19_usage_by_domain.png").exists()


@pytest.mark.eight_devices
def test_texts_that_fill_up_devices_count_once():
    """Three texts on eight devices, two batches: the same numbers as on one device."""
    config, tokenizer = presets.tiny(), load_tokenizer("bytes")
    params = random_parameters(config)
    texts = [Text(LONG), Text(LONG * 2, "a"), Text("Say it. " * 5, "b")] * 3
    found = [
        model.probe(Decoder(config, layout), params, tokenizer, texts, ["frequency_usage"], batch=n)
        for layout, n in ((sharding.make_layout("data=8"), 8), (sharding.one_device(), 2))
    ]
    many, one = (f.datasets["frequency_usage"] for f in found)
    assert many.tokens == one.tokens
    np.testing.assert_allclose(many.q, one.q, rtol=1e-5)
    assert list(found[0].by_label) == ["a", "b"]
    assert found[0].by_label["b"].tokens == 3 * 41


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
    "no run": (["--checkpoint={out}", "--out={out}"], r"no .*checkpoint|not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_one_line(case, run, tmp_path, capfd):
    arguments, message = WRONG[case]
    out = tmp_path / "probed"
    assert run_probe(*(one.format(run=run, out=out) for one in arguments)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not out.exists()


def test_a_folder_with_files_is_left_alone(run, tmp_path, capfd):
    (tmp_path / "mine.txt").write_text("mine")
    assert run_probe(f"--checkpoint={run}", f"--out={tmp_path}") == 2
    assert "exists and is not empty; nothing was changed" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_every_probe_of_the_command_is_a_probe():
    tokenizer = load_tokenizer("bytes")
    for name, make in model.PROBES.items():
        assert isinstance(make(tokenizer), probes.Probe) and make(tokenizer).name == name
