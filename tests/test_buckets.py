"""Paths in a bucket: what is written there, and whole commands that use nothing else."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import bucket
import numpy as np
import pytest
import xarray
from commands import check_one_line, run_command

from rope_study import checkpoints, data, evaluate, files, generate, paths, probe, probes
from rope_study.errors import UserError
from rope_study.training import metrics, owner

STEPS = 12


@pytest.fixture(scope="module")
def environment():
    """Of processes that find gs://bucket; this one does too."""
    with bucket.served() as clients, pytest.MonkeyPatch.context() as patch:
        for name, value in clients.items():
            patch.setenv(name, value)
        yield os.environ | {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def folder(environment, request):
    """A folder of the test's own."""
    return paths.to_path(f"gs://bucket/{request.node.name}")


# --- processes that share no folder -------------------------------------------------------------


def start(module, cwd, env, *arguments):
    cwd.mkdir(parents=True, exist_ok=True)
    config = Path("tests/tiny_config.py").absolute()
    command = [sys.executable, "-m", module, f"--config={config}", *arguments]
    env = env | {"PYTHONPATH": os.getcwd(), "TMPDIR": str(cwd)}
    return subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True)


def start_two(tmp_path, environment, *arguments):
    """One run on two processes, each in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = environment | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        start("rope_study.train", tmp_path / str(i), env | {"JAX_PROCESS_ID": str(i)}, *arguments)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def trained(environment, texts, tmp_path_factory):
    """A run of two processes that was killed and went on, all in the bucket."""
    home, run = tmp_path_factory.mktemp("hosts"), paths.to_path("gs://bucket/run")
    lines = [json.dumps({"text": file.read_text()}) for file in sorted(texts.iterdir())]
    files.write_atomically(paths.to_path("gs://bucket/texts.jsonl"), "\n".join(lines))
    data.load_tokenizer("bytes").export(home)
    paths.upload(home / "tokenizer.json", paths.to_path("gs://bucket/tokenizer.json"))
    arguments = (
        f"--config.workdir={run}", "--config.data.path=gs://bucket/*.jsonl",
        "--config.data.tokenizer=gs://bucket/tokenizer.json", "--config.model.layers=1",
        f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=4",
    )  # fmt: skip
    workers = start_two(home, environment, *arguments)
    while not metrics.read_metrics(run):
        assert workers[0].poll() is None, workers[0].communicate()[1]
        time.sleep(0.1)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    assert (run / owner.FILE).exists()
    for worker in start_two(home, environment, *arguments):
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    return run


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on(trained, tmp_path):
    assert [row["step"] for row in metrics.read_metrics(trained)] == list(range(STEPS))
    assert not (trained / owner.FILE).exists()


@pytest.mark.slow
def test_the_other_commands_read_and_write_there(trained, folder, capfd):
    model = f"--checkpoint={trained}"
    text = "--text=gs://bucket/texts.jsonl"
    assert run_command(evaluate.main, model, text, "--windows=2") == 0
    assert "loss" in capfd.readouterr().out
    assert run_command(generate.main, model, "--text=The cats", "--tokens=2") == 0
    assert capfd.readouterr().out.startswith("The cats")
    arguments = model, text, f"--out={folder}", "--texts=1", "--page_tokens=8"
    assert run_command(probe.main, *arguments) == 0
    assert {"index.html", "head_names.nc", "figures"} <= {path.name for path in folder.iterdir()}
    assert run_command(probe.main, *arguments) == 2
    check_one_line(capfd, r"gs://bucket/\S+ exists and is not empty.*; set --out$")


def test_a_checkpoint_that_lacks_an_object_or_has_another_is_named(trained):
    objects = paths.objects_below(trained / "checkpoints" / "12" / "params")
    largest = max(objects, key=lambda name: objects[name]["size"])
    damaged = trained / "checkpoints" / "12" / "params" / largest
    content = damaged.read_bytes()
    for damage, message in (
        (lambda: damaged.write_bytes(content[:-1] + b"?"), "damaged: not what was written; step 8"),
        (damaged.unlink, "missing; step 8 is intact"),
    ):
        damage()
        with pytest.raises(UserError, match=message):
            checkpoints.load(trained)
    damaged.write_bytes(content)
    assert checkpoints.load(trained)


def test_a_model_goes_to_a_bucket_and_back(trained, folder):
    """As a Hugging Face folder, and the run itself by copying all of its files."""
    decoder, params = checkpoints.load(trained)
    tokenizer = checkpoints.load_tokenizer(trained)
    checkpoints.export(decoder, params, folder, tokenizer=tokenizer)
    _, read = checkpoints.load(folder)
    np.testing.assert_array_equal(read["embedding"], params["embedding"])
    assert checkpoints.load_tokenizer(folder).encode("a cat").tolist() == [97, 32, 99, 97, 116]


def test_a_copy_of_a_run_on_a_disk_is_intact(trained, tmp_path):
    for file in paths.files_below(trained):
        copy = tmp_path / file.relative_to(trained)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    _, params = checkpoints.load(tmp_path)
    np.testing.assert_array_equal(params["embedding"], checkpoints.load(trained)[1]["embedding"])
