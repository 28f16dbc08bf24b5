"""Speeds in the log of a run, and a trace of its steps with the named parts of the program."""

import dataclasses

import jax
import pytest
import tiny_config
from commands import run_command

from rope_study import sharding, train
from rope_study.decoder.flops import train_flops
from rope_study.sharding import chips
from rope_study.training import settings
from rope_study.training.metrics import read_metrics
from rope_study.training.profiling import StepTrace
from rope_study.training.progress import Progress

SCOPES = ("rotary", "attention", "mlp", "loss", "optimizer")


@pytest.fixture(scope="module")
def traced(texts, tmp_path_factory):
    """The folder of a run of six steps, of which 2 and 3 are traced."""
    folder = tmp_path_factory.mktemp("traced") / "run"
    where = f"--config.workdir={folder}", f"--config.data.path={texts}"
    asked = "--config=tests/tiny_config.py", "--config.train.profile_steps=2:4"
    assert not run_command(train.main, *asked, *where)
    return folder


def test_a_trace_has_its_steps_and_the_scopes(traced):
    (file,) = traced.glob("profile/plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert sorted(steps) == [2, 3]
    content = file.read_bytes()
    assert [scope for scope in SCOPES if f"/{scope}/".encode() not in content] == []


def test_the_log_has_the_time_that_batches_took(traced):
    rows = read_metrics(traced)
    whole = sum(8 * 32 / row["tokens_per_second"] for row in rows)
    assert all(row["seconds_waited"] > 0 for row in rows)
    assert sum(row["seconds_waited"] for row in rows) < whole
    assert "mfu" not in rows[0], "of a CPU no peak is known"


@pytest.fixture
def run(tmp_path):
    (run, *_) = settings.resolve(tiny_config.get_config()).runs
    return dataclasses.replace(run, folder=tmp_path)


def test_mfu_is_the_flops_of_the_model_over_the_peak_of_the_devices(run, monkeypatch):
    layout = sharding.one_device()
    device_kind = layout.mesh.devices.flat[0].device_kind
    monkeypatch.setitem(chips.CHIPS, device_kind, chips.Chip("mine", 1e12, 1, 1, 1, devices=2))
    with Progress(run, layout, 0) as progress:
        progress.update(0, {"loss": 1.0, "gradient_norm": 1.0})
    (row,) = read_metrics(run.folder)
    flops = row["tokens_per_second"] * train_flops(run.decoder, 1, 32) / 32
    assert row["mfu"] == pytest.approx(flops / (1e12 / 2))


def test_steps_that_are_done_are_not_traced(run, capsys):
    train_settings = dataclasses.replace(run.train, profile_steps="0:2")
    with StepTrace(dataclasses.replace(run, train=train_settings), first=2) as trace:
        for step in range(2, 6):
            with trace.step(step):
                trace.after(step, ())
    assert "profile_steps: step 1 is done, nothing is traced" in capsys.readouterr().err
    assert not (run.folder / "profile").exists()
