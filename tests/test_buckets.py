"""Paths in a bucket: what is written there, and whole commands that use nothing else."""

import contextlib
import gzip
import importlib
import json
import os
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

from rope_study import checkpoints, data, evaluate, files, probe, probes, train
from rope_study.errors import UserError
from rope_study.files import paths
from rope_study.training import metrics, owner, usage_log

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


# --- paths and files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, message",
    [
        (
            "gs://absent/run",
            r"gs://absent cannot be reached \(.*\): check its name, and that .gcloud",
        ),
        ("s3://bucket/run", "s3:// paths: Install s3fs"),
        ("http://host/run", "'http://host/run' is no path: give a local one, or gs://bucket/"),
        ("gs:///run", "'gs:///run' is no path"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(path, message, environment, capfd):
    arguments = "--config=tests/tiny_config.py", f"--config.workdir={path}"
    assert run_command(train.main, *arguments) == 2
    check_one_line(capfd, rf"{message}.*; set config\.workdir$")


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'rope_study\[gcs\]'"):
        paths.to_path("gs://bucket/run")


def test_local_paths_load_no_library_of_buckets():
    program = (
        "import sys; from rope_study import command; from rope_study.files import paths;"
        " paths.to_path('runs/x');"
        " assert not {'fsspec', 'gcsfs', 'aiohttp'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_folder_is_replaced_and_what_readers_look_for_comes_last(folder):
    for names in (["a/weights", "config.json", "z"], ["config.json"]):
        with files.atomic(folder / "model") as part:
            for name in names:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_text("content")
        objects = paths.objects_below(folder / "model")
        assert list(objects) == names
        assert max(objects, key=lambda name: int(objects[name]["generation"])) == "config.json"
    with pytest.raises(UserError, match="exists and is not empty"):
        files.check_new_folder(folder)


def test_nothing_is_left_where_writing_fails(folder):
    with pytest.raises(KeyError), files.atomic(folder / "a") as part:
        part.write_text("ha")
        raise KeyError
    files.check_writable(folder / "new" / "a")
    assert not paths.files_below(folder)


def test_a_folder_is_moved_beside_what_is_there(folder):
    for content in ("first", "second"):
        files.write_atomically(folder / "6" / "array", content)
        files.move_to(folder / "6", folder / "damaged")
    moved = {file.name: file for file in paths.files_below(folder / "damaged")}
    assert sorted(str(f.relative_to(folder)) for f in paths.files_below(folder)) == [
        "damaged/6/array", "damaged/6_1/array",
    ]  # fmt: skip
    assert moved["array"].read_text() == "second"


def test_datasets_are_written_and_read_back(folder):
    dataset = xarray.Dataset({"a": ("x", [1.0, 2.0])})
    for name in ("a.nc", "a.zarr"):
        for value in (1.0, 2.0):
            probes.save(dataset + value, folder / name)
    assert xarray.load_dataset(paths.local_copy(folder / "a.nc")).a[0] == 3
    assert (folder / "a.zarr" / ".zgroup").exists()
    probes.save(dataset, folder / "a.nc")
    assert xarray.load_dataset(paths.local_copy(folder / "a.nc")).a[0] == 1


def test_texts_are_found_as_on_a_disk(folder, tmp_path):
    content = {
        "b.txt": b"one",
        "sub/a.md": b"two",
        "c.txt.gz": gzip.compress(b"three"),
        "d.png": b"",
    }
    for name, text in content.items():
        for root in (tmp_path, folder):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text)
    for pattern in ("", "*.txt*", "**/*.md", "c.txt.gz"):
        expected = data.read_documents(str(tmp_path / pattern))
        assert data.read_documents(f"{folder}/{pattern}".rstrip("/")) == expected
    assert [text.text for text in data.load_texts(folder / "b.txt")] == ["one"]
    with pytest.raises(UserError, match="is no file or folder and matches none"):
        data.read_documents(f"{folder}/*.rs")


def test_a_folder_in_a_bucket_has_one_owner(folder):
    late = owner._OwnerFile(folder)
    version = late.free_version()
    with owner.held(folder):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing gs://bucket"):
            late.free_version()
        with pytest.raises(UserError, match="another process has just begun to write"):
            late.claim(version)
    assert not (folder / owner.FILE).exists()
    late.claim(late.free_version())
    late.release()


# --- processes that share no folder -------------------------------------------------------------


def start(module, cwd, env, *arguments):
    cwd.mkdir(parents=True, exist_ok=True)
    config = Path("tests/tiny_config.py").absolute()
    command = [sys.executable, "-m", module, f"--config={config}", *arguments]
    env = env | {"PYTHONPATH": os.getcwd(), "TMPDIR": str(cwd)}
    return subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def two_processes(tmp_path, environment, *arguments):
    """One run on two processes, each in a folder of its own; both are killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = environment | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    workers = [
        start("rope_study.train", tmp_path / str(i), env | {"JAX_PROCESS_ID": str(i)}, *arguments)
        for i in range(2)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


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
        "--config.train.profile_steps=9:11", "--config.train.probe_every=6",
    )  # fmt: skip
    with two_processes(home, environment, *arguments) as workers:
        while not metrics.read_metrics(run):
            assert workers[0].poll() is None, workers[0].communicate()[1]
            time.sleep(0.1)
    assert (run / owner.FILE).exists()
    with two_processes(home, environment, *arguments) as workers:
        for worker in workers:
            _, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors
    return run


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on(trained, tmp_path):
    assert [row["step"] for row in metrics.read_metrics(trained)] == list(range(STEPS))
    assert usage_log.read_usage(trained).step.values.tolist() == list(range(0, STEPS + 1, 6))
    assert not (trained / owner.FILE).exists()
    written = {file.suffix for file in paths.files_below(trained / "profile")}
    assert ".pb" in written
    assert any("tfevents" in file.name for file in paths.files_below(trained / "tensorboard"))


@pytest.mark.slow
def test_the_other_commands_read_and_write_there(trained, folder, capfd):
    generate = importlib.import_module("rope_study.generate").main
    model = f"--checkpoint={trained}"
    text = "--text=gs://bucket/texts.jsonl"
    assert run_command(evaluate.main, model, text.replace("text", "data", 1), "--texts=2") == 0
    assert "loss" in capfd.readouterr().out
    assert run_command(generate, model, "--text=The cats", "--tokens=2") == 0
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
