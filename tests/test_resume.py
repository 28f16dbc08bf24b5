"""Real processes: killed and continued, and the way a user starts a command."""

import os
import subprocess
import sys

import pytest

from benchmarks import kills
from rope_study.training.metrics import read_metrics

STEPS = 40


def start(module, folder, *arguments, config="tests/tiny_config.py", env=None):
    """Starts `python -m module` on one CPU device unless the environment says otherwise."""
    command = [sys.executable, "-m", module, f"--config={config}"]
    settings = [f"--config.workdir={folder}", f"--config.train.steps={STEPS}", *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {})
    return subprocess.Popen(command + settings, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_through_kills_ends_as_one_that_nobody_stopped(tmp_path, monkeypatch):
    """Four SIGKILLs, two inside a save, bit for bit; benchmarks/kills.py has twenty."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    settings = (
        "--config=tests/tiny_config.py", f"--config.train.steps={STEPS}",
        "--config.train.checkpoint_every=5", "--config.train.probe_every=4",
    )  # fmt: skip
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    kills.finish(kills.train(settings, whole))
    killed = [
        kills.kill(kills.train(settings, folder), folder, step, in_save, after=0)
        for step, in_save in ((1, False), (7, True), (16, False), (27, True))
    ]
    kills.finish(kills.train(settings, folder))
    assert any(at.saving for at in killed), killed
    assert [row["step"] for row in read_metrics(folder)] == list(range(STEPS))
    assert kills.differences(folder, whole) == []


@pytest.mark.slow
def test_wrong_input_from_a_shell_is_one_line_and_status_2(tmp_path):
    process = start("rope_study.study", tmp_path / "run", "--config.encodings=('rop',)")
    _, errors = process.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if "tokenize" not in line]
    assert process.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("error: unknown encoding 'rop'."), errors
    assert not (tmp_path / "run").exists()
