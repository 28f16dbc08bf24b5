"""Studies as a user gives them: outputs, seeds, what trains again and what does not."""

import json
import shutil

import numpy as np
import pytest
import xarray
from commands import check_one_line, run_command

from rope_study import checkpoints, probes, rotary, study, train
from rope_study.errors import UserError
from rope_study.reports import results as results_lib
from rope_study.training.metrics import read_metrics

CONFIG = "--config=tests/tiny_config.py"


def run_study(folder, texts, *arguments, main=study.main) -> int:
    """The exit status of a study in that folder."""
    where = f"--config.workdir={folder}", f"--config.data.path={texts}"
    return run_command(main, CONFIG, *where, *arguments)


def read_results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def modified(folder) -> dict:
    """When each checkpoint below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*")}


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    """A study of RoPE and NoPE with two seeds that ran to its end."""
    folder = tmp_path_factory.mktemp("study") / "run"
    assert not run_study(folder, texts, "--config.seeds=(0, 1)")
    return folder


def test_study_writes_its_outputs(finished):
    results = read_results(finished)
    assert [row["name"] for row in results["encodings"]] == ["rope(theta=10000)", "nope()"]
    for row in results["encodings"]:
        assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
        assert 10 < row["perplexity"] < 256  # better than chance after six steps
    facts = results["facts"]
    assert facts["tokens seen"] == 6 * 8 * 32 and facts["seeds"] == "0, 1"
    assert facts["parameters"] == 37_024 and facts["version of jax"]
    assert results["config"]["train"]["steps"] == 6
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    assert {"loss_curves", "differences", "frequency_usage", "norms_by_layer_nope"} <= names
    assert "nope()" in (finished / "report.html").read_text()
    for run in ("rope_theta10000_seed0", "nope_seed1"):
        assert [row["step"] for row in read_metrics(finished / run)] == list(range(6))
        assert list((finished / run / "tensorboard").glob("events*"))


def test_differences_are_paired_by_seed(finished):
    """Mean and 95 % interval over seeds of the difference between runs of one seed."""
    rope, nope = read_results(finished)["encodings"]
    differences = [nope["losses"][seed] - rope["losses"][seed] for seed in ("0", "1")]
    assert list(nope["differences"].values()) == pytest.approx(differences)
    assert nope["difference"] == pytest.approx(np.mean(differences))
    # Student's t for one degree of freedom is 12.706.
    half_width = 12.706 * abs(differences[0] - differences[1]) / 2
    assert nope["difference_interval"] == pytest.approx(half_width, rel=1e-4)
    assert "difference" not in rope and "difference_se" not in nope


def test_encodings_start_from_the_same_weights_and_batches(finished):
    """Before any update only the encoding differs; another seed has other weights and batches."""
    first_losses = {
        name: read_metrics(finished / name)[0]["loss"]
        for name in ("rope_theta10000_seed0", "nope_seed0", "nope_seed1")
    }
    rope, nope, other_seed = first_losses.values()
    assert rope == pytest.approx(nope, abs=0.05) and rope != nope
    assert other_seed != nope


def test_a_study_is_a_view_over_runs(finished, texts, tmp_path, monkeypatch):
    """More encodings, windows, another backend or place of the text train nothing again."""
    folder, moved = tmp_path / "study", tmp_path / "moved"
    shutil.copytree(finished, folder)
    shutil.copytree(texts, moved)
    before = modified(folder)
    assert not run_study(
        folder, moved, "--config.encodings=('nope', 'p_rope')", "--config.evaluate.windows=8",
        "--config.model.remat=full", "--config.train.log_every=3", "--config.train.accumulate=2",
    )  # fmt: skip
    after = modified(folder)
    assert {path: after[path] for path in before} == before
    assert {path.parts[-3] for path in after.keys() - before.keys()} == {
        "p_rope_p0.75_theta10000_seed0"
    }
    results = read_results(folder)["encodings"]
    assert [row["name"] for row in results] == ["nope()", "p_rope(p=0.75, theta=10000)"]
    assert "difference_se" in results[1]  # one seed: over windows


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.train.steps=7", r"different run \(train\.steps is 6 there and 7 here\)"),
        ("--config.data.held_out=0.2", r"different run \(data\.corpus is"),
        ("--config.data.length=16", r"data\.length is 32 there and 16 here"),
        ("--config.model.layers=1", r"decoder\.layers is 2 there and 1 here"),
    ],
)
def test_a_folder_of_another_run_is_left_alone(argument, message, finished, texts, capfd):
    before = modified(finished)
    assert run_study(finished, texts, argument) == 2
    check_one_line(capfd, message + r".*nothing was changed.*set config\.workdir")
    assert modified(finished) == before


def test_a_changed_function_is_another_run(texts, tmp_path, monkeypatch, capfd):
    """Named as module:function, with no edit to the package."""
    module = tmp_path / "my_encodings.py"
    text = (
        "def slower(x, positions):\n"
        "    from rope_study import rotary\n"
        "    return rotary.rope()(x, positions // {factor})\n"
    )
    module.write_text(text.format(factor=2))
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    arguments = "--config.train.steps=1", "--config.encodings=('my_encodings:slower',)"
    assert not run_study(folder, texts, *arguments)
    decoder, _ = checkpoints.load(folder / "my_encodings_slower_seed0")
    assert decoder.config.layer_specs[0].rotary.__name__ == "slower"
    monkeypatch.delitem(__import__("sys").modules, "my_encodings")
    module.write_text(text.format(factor=3) + "\n")
    assert run_study(folder, texts, *arguments) == 2
    check_one_line(capfd, "the encoding computes something else")


def test_one_run_is_trained_in_the_folder_itself(texts, tmp_path, capfd):
    folder = tmp_path / "one"
    arguments = "--config.model.rotary=nope", "--config.train.steps=2"
    assert not run_study(folder, texts, *arguments, main=train.main)
    assert "held-out perplexity" in capfd.readouterr().out
    assert checkpoints.load(folder)[0].config.pattern[0].rotary == rotary.nope()
    assert run_study(folder, texts, "--config.seeds=(0, 1)", main=train.main) == 2
    check_one_line(capfd, r"one run has one seed.*set config\.seeds")


def test_intervals_are_those_of_student():
    mean, half_width = results_lib.mean_and_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half_width == pytest.approx(4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    assert np.isnan(results_lib.mean_and_interval([1.0])[1])


# --- reading a run ----------------------------------------------------------------------------


def test_checkpoint_in_three_lines(finished):
    decoder, params = checkpoints.load(finished / "nope_seed0")
    tokens = checkpoints.load_tokenizer(finished / "nope_seed0").encode_batch(["Some text."])
    usage = probes.run(decoder, params, [tokens], [probes.frequency_usage])["frequency_usage"]
    assert usage["q"].dims == ("layer", "head", "pair")
    assert usage["q"].shape == (2, 4, 8) and usage["k"].shape == (2, 2, 8)
    assert usage.attrs["tokens"] == 11 and usage["q"].attrs["units"] == "1"
    assert (usage["inverse_frequency"] == 0).all()


def test_probe_of_a_run_counts_what_numpy_counts(finished):
    """Mean pair norms over real tokens, against NumPy on the activations of layer 0."""
    folder = finished / "rope_theta10000_seed0"
    decoder, params = checkpoints.load(folder)
    tokenizer = checkpoints.load_tokenizer(folder)
    batches = [tokenizer.encode_batch(["a", "bcdef"]), tokenizer.encode_batch(["xyz", "."])]
    usage = probes.run(decoder, params, batches, [probes.frequency_usage])["frequency_usage"]
    queries = probes.Probe("queries", ("q",), lambda activations, weights: activations["q"])
    norms = []
    for tokens, weights in batches:
        _, aux = decoder.apply({"params": params}, tokens, probes=[queries])
        q = np.asarray(aux["queries"][0], np.float64)
        half = q.shape[-1] // 2
        norms.append(np.hypot(q[..., :half], q[..., half:])[weights > 0])
    np.testing.assert_allclose(usage["q"][0], np.concatenate(norms).mean(axis=0), rtol=1e-5)


def test_checkpoint_under_another_encoding(finished):
    folder = finished / "rope_theta10000_seed0"
    decoder, params = checkpoints.load(folder, rotary="p_rope(p=0.25)")
    assert decoder.config.layer_specs[0].rotary == rotary.p_rope(0.25)
    plain, plain_params = checkpoints.load(folder)
    tokens = np.arange(16, dtype=np.int32)[None]
    changed = decoder.apply({"params": params}, tokens)[0]
    assert not np.allclose(changed, plain.apply({"params": plain_params}, tokens)[0])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_datasets_are_saved_and_read_back(finished, tmp_path, suffix):
    usage = xarray.load_dataset(finished / "nope_seed0" / "frequency_usage.nc")
    probes.save(usage, tmp_path / f"usage{suffix}")
    back = xarray.open_dataset(tmp_path / f"usage{suffix}")
    xarray.testing.assert_identical(back.load(), usage)
    with pytest.raises(UserError, match=r"\.nc .*or \.zarr"):
        probes.save(usage, tmp_path / "usage.csv")


def test_loading_what_is_not_there(finished, tmp_path):
    with pytest.raises(UserError, match="no run at"):
        checkpoints.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"runs below it: .*nope_seed0"):
        checkpoints.load(finished)
    with pytest.raises(UserError, match=r"no checkpoint of step 5.*\[4, 6\]"):
        checkpoints.load(finished / "nope_seed0", step=5)
