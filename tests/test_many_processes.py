"""Real processes that work together, as on the hosts of a pod: gloo between them, on CPUs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray
from commands import run_command

from rope_study import checkpoints, train
from rope_study.training import usage_log

STEPS = 120
ROWS = 8  # of a batch, as tiny_config.py has it
CONFIG = "tests/tiny_config.py"
# Of losses over 120 steps, between one device and 2, 4 and 8 of several processes: 5.3e-7 measured.
TOLERANCE = 1.5e-6


class Processes:
    """Several that were started together."""

    def __init__(self, count, *command, devices=1, env=None, folders=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        env = os.environ | (env or {}) | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "PYTHONPATH": os.getcwd(),
        }  # fmt: skip
        self.all = [
            subprocess.Popen(
                [sys.executable, *command],
                env=env | {"JAX_PROCESS_ID": str(i)},
                cwd=folders and folders[i],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]

    def __getitem__(self, process):
        return self.all[process]

    def wait_for_step(self, folder, step):
        """Returns once a run has logged a step."""
        log = folder / "metrics.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) <= step:
            assert all(process.poll() is None for process in self.all), self.finish()
            time.sleep(0.01)

    def finish(self, timeout=240):
        """The exit statuses, and what each wrote to stdout and stderr."""
        try:
            written = [process.communicate(timeout=timeout) for process in self.all]
        finally:
            for process in self.all:
                process.kill()
        out, errors = zip(*written, strict=True)
        return [process.returncode for process in self.all], out, errors


def settings(folder, texts):
    return [
        f"--config={CONFIG}", f"--config.workdir={folder}", f"--config.data.path={texts}",
        f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=8",
        "--config.train.probe_every=20",
    ]  # fmt: skip


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return np.array([row["loss"] for row in rows])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, texts):
    """A run of one process with one device, never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert not run_command(train.main, *settings(folder, texts))
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, texts):
    """A run of four processes with two devices each, of which one is killed; what they wrote."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    processes = Processes(
        4, "tests/traced_train.py", *settings(folder, texts), "--config.mesh=data=2,fsdp=4",
        devices=2, env={"TRACE_FOLDER": str(folder.parent)},
    )  # fmt: skip
    processes.wait_for_step(folder, 12)
    processes[2].kill()
    return folder, processes.finish(timeout=60)


@pytest.mark.slow
def test_a_killed_process_ends_all_with_a_line_that_names_it(killed):
    _, (statuses, _, errors) = killed
    assert statuses == [1, 1, -signal.SIGKILL, 1]
    line = f"error: process 2 of 4 (host {socket.gethostname()}) is gone; what was saved stays"
    assert line in errors[0] and not any("error" in text for text in errors[1:])


@pytest.mark.slow
def test_each_process_asks_for_its_rows_alone(killed):
    folder, _ = killed
    asked = [
        [json.loads(line) for line in (folder.parent / f"rows_{i}.jsonl").open()] for i in range(4)
    ]
    for step in range(12):
        rows = [
            [row for at, start, stop in of if at == step for row in range(start, stop)]
            for of in asked
        ]
        assert [len(set(of)) for of in rows] == [2] * 4
        assert sorted(row for of in rows for row in of) == list(range(ROWS))


@pytest.mark.slow
def test_what_several_processes_saved_goes_on_on_any_devices(killed, whole, texts, tmp_path):
    """Four processes, then two until SIGTERM, then one with eight devices, or with one."""
    folder, _ = killed
    processes = Processes(
        2, "tests/traced_train.py", *settings(folder, texts), env={"TRACE_FOLDER": str(tmp_path)}
    )
    processes.wait_for_step(folder, 30)
    processes[1].terminate()
    statuses, _, errors = processes.finish()
    assert statuses == [0, 0], errors
    (line,) = [line for line in "\n".join(errors).splitlines() if "preempted" in line]
    last = len(losses(folder))
    saved = f"preempted: step {last} of {STEPS} is saved in {folder}; the same command goes on"
    assert saved in line and 30 < last < STEPS
    assert (folder / "checkpoints" / str(last)).is_dir()

    one = shutil.copytree(folder, tmp_path / "one")
    eight = subprocess.Popen(
        [sys.executable, "-m", "rope_study.train", *settings(folder, texts)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        stderr=subprocess.PIPE,
    )
    assert not run_command(train.main, *settings(one, texts))
    assert eight.wait(timeout=240) == 0, eight.communicate()
    for path in (one, folder):
        np.testing.assert_allclose(losses(path), losses(whole), rtol=TOLERANCE)
        usage = usage_log.read_usage(path)
        assert usage.step.values.tolist() == list(range(0, STEPS + 1, 20))
        xarray.testing.assert_allclose(usage, usage_log.read_usage(whole), rtol=1e-4)


@pytest.mark.slow
def test_every_command_works_and_writes_once(tmp_path, texts):
    processes = Processes(2, "-m", "tests.every_command", str(tmp_path), str(texts))
    statuses, out, errors = processes.finish()
    assert statuses == [-signal.SIGKILL, 1], errors
    for once in ("report: ", "Loss in nats a token", "frequency_usage.nc", "The"):
        assert once in out[0] and once not in out[1]
    assert "probing" in errors[0] and "probing" not in errors[1]
    gone = "error: process 0 of 2 (host "
    assert errors[1].splitlines()[-1].startswith(gone), errors[1]
    study = tmp_path / "study"
    assert {"results.json", "report.html", "figures"} <= {path.name for path in study.iterdir()}
    assert xarray.load_dataset(tmp_path / "probe" / "frequency_usage.nc").tokens == 22  # and BOS
    exported, params = checkpoints.load(tmp_path / "export", dtype="float32")
    logits = [np.load(tmp_path / f"logits_{i}.npy") for i in range(2)]
    np.testing.assert_array_equal(*logits)
    tokens = checkpoints.load_tokenizer(tmp_path / "export").encode_batch(["The cats"])[0]
    ours, _ = exported.apply({"params": params}, tokens)
    np.testing.assert_allclose(ours, logits[0], atol=1e-4)


@pytest.mark.slow
def test_what_one_process_lacks_ends_all_in_one_line(tmp_path, texts):
    """The text lies on the first host only."""
    hosts = [tmp_path / "a", tmp_path / "b"]
    for host in hosts:
        host.mkdir()
    (hosts[0] / "texts").symlink_to(texts)
    config = os.path.abspath(CONFIG)
    processes = Processes(
        2, "-m", "rope_study.study", f"--config={config}", f"--config.workdir={tmp_path / 'run'}",
        "--config.data.path=texts", folders=hosts,
    )  # fmt: skip
    statuses, _, errors = processes.finish()
    assert statuses == [2, 2] and not errors[1].strip()
    (line,) = [line for line in errors[0].splitlines() if "error: " in line]
    assert line.startswith("process 1 of 2 (host ") and "'texts' is no file or folder" in line
    assert not (tmp_path / "run").exists()
