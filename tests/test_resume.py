"""Real processes: killed and continued, and the way a user starts a command."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rope_study.checkpoints import load

STEPS = 40


def start(module, folder, *arguments, config="tests/tiny_config.py", env=None):
    """Starts `python -m module` on one CPU device unless the environment says otherwise."""
    command = [sys.executable, "-m", module, f"--config={config}"]
    settings = [f"--config.workdir={folder}", f"--config.train.steps={STEPS}", *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {})
    return subprocess.Popen(command + settings, env=env, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(STEPS))
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "whole"
    finish(start("rope_study.train", folder))
    return folder


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(uninterrupted, tmp_path):
    """SIGKILL mid-run, twice; losses of every step and all parameters equal the whole run's."""
    folder = tmp_path / "killed"
    for after in (7, 23):
        process = start("rope_study.train", folder, "--config.train.checkpoint_every=5")
        log, deadline = folder / "metrics.jsonl", time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) <= after:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start("rope_study.train", folder, "--config.train.checkpoint_every=5"))
    assert losses(folder) == losses(uninterrupted)
    _, expected = load(uninterrupted)
    _, got = load(folder)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), got, expected)


@pytest.mark.slow
def test_wrong_input_from_a_shell_is_one_line_and_status_2(tmp_path):
    process = start("rope_study.study", tmp_path / "run", "--config.encodings=('rop',)")
    _, errors = process.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if "tokenize" not in line]
    assert process.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("error: unknown encoding 'rop'."), errors
    assert not (tmp_path / "run").exists()
