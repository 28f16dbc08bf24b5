"""Whole commands as a user gives them: the study, its outputs, and every wrong input."""

import json
import re
import sys

import numpy as np
import pytest
import xarray
from absl import flags

from rope_study import checkpoints, command, probes, rotary, study
from rope_study.errors import UserError

CONFIG = "--config=tests/tiny_config.py"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two hundred short documents that differ."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(200):
        (folder / f"{i}.txt").write_text(f"Document {i}. " + f"The {i} cats sat on {i} mats. " * 9)
    return folder


def run_command(*arguments, main=study.study):
    """Runs a command in this process as `python -m` would; returns its exit status."""
    for flag in list(flags.FLAGS):
        if flag.startswith("config."):  # overrides of the run before
            delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    argv, sys.argv = sys.argv, ["study", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            command.run(main)
    finally:
        sys.argv = argv
    return stop.value.code


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    """A study that ran to its end."""
    folder = tmp_path_factory.mktemp("study") / "run"
    status = run_command(CONFIG, f"--config.workdir={folder}", f"--config.data.path={texts}")
    assert not status
    return folder


def test_study_writes_its_outputs(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [row["name"] for row in results["encodings"]] == ["rope(theta=10000)", "nope()"]
    for row in results["encodings"]:
        assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
        assert 10 < row["perplexity"] < 256  # better than chance after six steps
    facts = results["facts"]
    assert facts["tokens seen"] == 6 * 8 * 32 and facts["seed"] == 0
    assert facts["parameters"] == 37_024 and facts["version of jax"]
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    assert {"loss_curves", "frequency_usage", "decay", "norms_by_layer_nope"} <= names
    assert "nope()" in (finished / "report.html").read_text()
    for run in ("rope_theta10000", "nope"):
        steps = [json.loads(line)["step"] for line in (finished / run / "metrics.jsonl").open()]
        assert steps == list(range(6))
        assert list((finished / run / "tensorboard").glob("events*"))


def test_encodings_start_from_the_same_weights_and_batches(finished):
    """At the first step, before any update, only the encoding differs; the data do not."""
    first = [
        json.loads((finished / run / "metrics.jsonl").read_text().splitlines()[0])
        for run in ("rope_theta10000", "nope")
    ]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=0.05)
    assert first[0]["loss"] != first[1]["loss"]


def test_finished_study_run_again_gives_the_same_results(finished, texts):
    before = json.loads((finished / "results.json").read_text())
    arguments = CONFIG, f"--config.workdir={finished}", f"--config.data.path={texts}"
    assert not run_command(*arguments)
    assert json.loads((finished / "results.json").read_text()) == before


def test_checkpoint_in_three_lines(finished):
    decoder, params = checkpoints.load(finished / "nope")
    tokens = checkpoints.load_tokenizer(finished / "nope").encode_batch(["Some text."] * 8)
    usage = probes.run(decoder, params, [tokens], [probes.frequency_usage])["frequency_usage"]
    assert usage["q"].dims == ("layer", "head", "pair")
    assert usage["q"].shape == (2, 4, 8) and usage["k"].shape == (2, 2, 8)
    assert usage.attrs["tokens"] == 8 * 11 and usage["q"].attrs["units"] == "1"
    assert (usage["inverse_frequency"] == 0).all()


def test_probe_of_a_run_counts_what_numpy_counts(finished):
    """Mean pair norms over real tokens, against NumPy on the activations of layer 0."""
    decoder, params = checkpoints.load(finished / "rope_theta10000", mesh="fsdp=1,data=8")
    tokenizer = checkpoints.load_tokenizer(finished / "rope_theta10000")
    batches = [tokenizer.encode_batch(["a", "bcdef"] * 4), tokenizer.encode_batch(["xyz"] * 8)]
    usage = probes.run(decoder, params, batches, [probes.frequency_usage])["frequency_usage"]
    raw = probes.Probe("raw", ("q",), lambda a, w: a["q"], lambda *_: None)
    norms = []
    for tokens, weights in batches:
        _, aux = decoder.apply({"params": params}, decoder.layout.place(tokens), probes=[raw])
        q = np.asarray(aux["raw"][0], np.float64)
        half = q.shape[-1] // 2
        norms.append(np.hypot(q[..., :half], q[..., half:])[weights > 0])
    np.testing.assert_allclose(usage["q"][0], np.concatenate(norms).mean(axis=0), rtol=1e-5)


def test_checkpoint_under_another_encoding(finished):
    decoder, params = checkpoints.load(finished / "rope_theta10000", rotary="p_rope(p=0.25)")
    assert decoder.config.layer_specs[0].rotary == rotary.p_rope(0.25)
    plain, same = checkpoints.load(finished / "rope_theta10000")
    tokens = np.arange(16, dtype=np.int32)[None] * np.ones((8, 1), np.int32)
    changed = decoder.apply({"params": params}, tokens)[0]
    assert not np.allclose(changed, plain.apply({"params": same}, tokens)[0])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_datasets_are_saved_and_read_back(finished, tmp_path, suffix):
    usage = xarray.load_dataset(finished / "nope" / "frequency_usage.nc")
    probes.save(usage, tmp_path / f"usage{suffix}")
    back = xarray.open_dataset(tmp_path / f"usage{suffix}")
    xarray.testing.assert_identical(back.load(), usage)
    with pytest.raises(UserError, match=r"\.nc .*or \.zarr"):
        probes.save(usage, tmp_path / "usage.csv")


def test_a_users_function_runs_from_a_config(texts, tmp_path, monkeypatch):
    """Named as module:function, with no edit to the package."""
    (tmp_path / "my_encodings.py").write_text(
        "def mirrored(x, positions):\n"
        "    from rope_study import rotary\n"
        "    return rotary.rope()(x[..., ::-1], positions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    status = run_command(
        CONFIG,
        f"--config.workdir={folder}",
        f"--config.data.path={texts}",
        "--config.train.steps=1",
        "--config.encodings=('my_encodings:mirrored',)",
    )
    assert not status
    decoder, _ = checkpoints.load(folder / "my_encodings_mirrored")
    assert decoder.config.layer_specs[0].rotary.__name__ == "mirrored"


# --- wrong input: one line, exit status 2, nothing written -------------------------------------

WRONG = {
    "encoding": (["--config.encodings=('rpe',)"], r"unknown encoding 'rpe'.*'rope'"),
    "p": (["--config.encodings=('p_rope(1.5)',)"], r"p=1\.5 must lie in \[0, 1\]"),
    "no encodings": (["--config.encodings=()"], r"no encodings.*config\.encodings"),
    "head_dim": (["--config.model.head_dim=15"], r"head_dim=15 is odd.*config\.model\.head_dim"),
    "heads": (["--config.model.heads=3"], r"heads=3 is not a multiple of kv_heads=2"),
    "preset": (["--config.model.preset=tinny"], r"unknown preset 'tinny'.*'tiny'"),
    "field": (["--config.train.stepps=3"], r"stepps.*steps"),
    "type": (["--config.train.steps=many"], r"many"),
    "range": (["--config.train.steps=0"], r"train\.steps=0 must be at least 1"),
    "rate": (["--config.train.learning_rate=-1."], r"learning_rate=-1\.0 must be a positive"),
    "mesh": (["--config.mesh=fsdp=5"], r"does not fit 8 device.*config\.mesh"),
    "rows": (["--config.data.batch_size=6"], r"6 rows does not divide over 8"),
    "tokenizer": (["--config.data.tokenizer=no.model"], r"no\.model.*config\.data\.tokenizer"),
    "argument": (["extra"], r"unexpected argument 'extra'"),
    "flag": (["--confg.seed=1"], r"confg"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings(case, texts, tmp_path, capfd):
    arguments, message = WRONG[case]
    folder = tmp_path / "run"
    arguments = [f"--config.workdir={folder}", f"--config.data.path={texts}", *arguments]
    assert run_command(CONFIG, *arguments) == 2
    check_one_line(capfd, message)
    assert not folder.exists()


def check_one_line(capfd, message):
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def write_nothing(folder):
    return folder / "absent.txt"


def write_empty(folder):
    (folder / "empty.txt").write_text(" \n\n")
    return folder / "empty.txt"


def write_latin1(folder):
    (folder / "latin.txt").write_bytes("façade".encode("latin-1"))
    return folder / "latin.txt"


def write_short(folder):
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"{i} word")
    return folder


TEXTS = {
    "missing": (write_nothing, r"absent\.txt.*config\.data\.path"),
    "empty": (write_empty, r"empty"),
    "not UTF-8": (write_latin1, r"latin\.txt.*UTF-8"),
    "short": (write_short, r"one batch needs 256"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_wrong_texts(case, tmp_path, capfd):
    write, message = TEXTS[case]
    (tmp_path / "texts").mkdir()
    path = write(tmp_path / "texts")
    folder = tmp_path / "run"
    assert run_command(CONFIG, f"--config.workdir={folder}", f"--config.data.path={path}") == 2
    check_one_line(capfd, message)
    assert not folder.exists()


def test_no_config_and_a_missing_config_file(capfd):
    assert run_command() == 2
    check_one_line(capfd, r"no configuration.*configs/quickstart\.py")
    assert run_command("--config=configs/absent.py") == 2
    check_one_line(capfd, r"configs/absent\.py")


def test_a_workdir_of_another_run_is_left_alone(finished, texts, capfd):
    before = sorted(path for path in finished.rglob("*"))
    arguments = [f"--config.workdir={finished}", f"--config.data.path={texts}"]
    assert run_command(CONFIG, *arguments, "--config.seed=1", "--config.train.steps=7") == 2
    check_one_line(capfd, r"different run.*seed is 0 there and 1 here.*train\.steps is 6.*workdir")
    assert sorted(path for path in finished.rglob("*")) == before


def test_a_workdir_with_other_files_is_left_alone(texts, tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run_command(CONFIG, f"--config.workdir={tmp_path}", f"--config.data.path={texts}") == 2
    check_one_line(capfd, r"no run of this project.*config\.workdir")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_loading_what_is_not_there(finished, tmp_path):
    with pytest.raises(UserError, match="no run at"):
        checkpoints.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"runs below it: .*nope"):
        checkpoints.load(finished)
    with pytest.raises(UserError, match=r"no checkpoint of step 5.*\[4, 6\]"):
        checkpoints.load(finished / "nope", step=5)
