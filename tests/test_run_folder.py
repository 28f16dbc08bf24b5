"""A run's folder: its owner, damaged checkpoints, and what an interruption leaves behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands import check_one_line
from tiny_config import get_config

from rope_study import checkpoints, files
from rope_study.errors import UserError
from rope_study.training import metrics as metrics_lib
from rope_study.training import owner, run_folder, settings, starts

CONFIG = "--config=tests/tiny_config.py"


@pytest.fixture(scope="module")
def finished(train_in, tmp_path_factory):
    """A run of six steps with checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert not train_in(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def content(folder):
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file):
    """64 bytes in the middle, as a bad disk does; the size stays."""
    damaged = bytearray(file.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(byte ^ 0xFF for byte in damaged[middle : middle + 64])
    file.write_bytes(damaged)


# --- damage -----------------------------------------------------------------------------------

DAMAGE = {
    "truncated": (
        lambda at: os.truncate(largest(at / "params"), 100),
        r"/d/\w+ is damaged: 100 by",
    ),
    "flipped": (
        lambda at: flip(largest(at / "params")),
        r"/d/\w+ is damaged: not what was written",
    ),
    "metadata": (lambda at: (at / "params/_METADATA").write_text("{}"), r"_METADATA is damaged: 2"),
    "index": (lambda at: (at / "params/manifest.ocdbt").unlink(), r"manifest\.ocdbt is missing"),
    "folder": (lambda at: shutil.rmtree(at / "params"), r"params/\S+ is missing"),
    "manifest": (lambda at: (at / "manifest/crc32c.json").write_text(""), r"2c\.json is damaged"),
    "list": (lambda at: (at / "manifest/crc32c.json").write_text("[]"), r"a list, no object"),
    "without": (
        lambda at: [shutil.rmtree(at / name) for name in ("manifest", "params")],
        r"step 6 cannot be read: Item \"params\" was not found",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_load_names_the_damaged_file_and_the_step_that_is_intact(case, run):
    damage, message = DAMAGE[case]
    _, expected = checkpoints.load(run, step=4)
    damage(run / "checkpoints" / "6")
    with pytest.raises(UserError, match=message + r".*; step 4 is intact; give step=4$") as caught:
        checkpoints.load(run)
    assert str(run / "checkpoints") in str(caught.value) and "\n" not in str(caught.value)
    _, params = checkpoints.load(run, step=4)
    np.testing.assert_array_equal(params["embedding"], expected["embedding"])


def test_a_damaged_optimizer_does_not_matter_to_load(run):
    flip(largest(run / "checkpoints" / "6" / "optimizer"))
    checkpoints.load(run)


@pytest.mark.parametrize("case", ["flipped", "folder"])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(case, run, train_in, capfd):
    """To the same parameters; the damaged one is set aside, and named."""
    _, expected = checkpoints.load(run)
    DAMAGE[case][0](run / "checkpoints" / "6")
    assert not train_in(run)
    errors = capfd.readouterr().err
    assert "checkpoints/6/params/" in errors
    assert "set aside in damaged/; going on from step 4" in errors
    assert (run / "damaged" / "6").is_dir()
    _, params = checkpoints.load(run, step=6)
    np.testing.assert_array_equal(params["embedding"], expected["embedding"])
    assert [row["step"] for row in metrics_lib.read_metrics(run)] == list(range(6))


def test_without_an_intact_checkpoint_nothing_is_touched(run, train_in, capfd):
    for step in ("4", "6"):
        flip(largest(run / "checkpoints" / step / "optimizer"))
    before = content(run / "checkpoints")
    assert train_in(run) == 2
    check_one_line(
        capfd, r"no checkpoint is intact: .*/6/optimizer/.*/4/optimizer/.*set config\.work"
    )
    assert content(run / "checkpoints") == before
    with pytest.raises(UserError, match=r"/6/params/\S+ is missing; no other step can be read"):
        for step in ("4", "6"):
            shutil.rmtree(run / "checkpoints" / step / "params")
        checkpoints.load(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"nothing has been saved yet$") as none_saved:
        checkpoints.load(run)
    assert none_saved.value.argument is None  # no other --step would help


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"model\.json is damaged \(Expecting value"),
        ("garbage", r"model\.json is damaged"),
        ("[1]", r"model\.json is damaged \(a list, no object\)"),
        ("{}", r"model\.json is damaged \(without decoder, tokenizer\); the command that"),
        ('{"decoder": {}, "tokenizer": ""}', r"model\.json describes no decoder"),
    ],
)
def test_a_damaged_model_file_is_named_and_written_again(text, message, run, train_in):
    (run / "model.json").write_text(text)
    with pytest.raises(UserError, match=message):
        checkpoints.load(run)
    assert not train_in(run)
    checkpoints.load(run)


def test_a_model_file_of_another_shape_is_named(run):
    file = run / "model.json"
    file.write_text(file.read_text().replace('"d_model": 32', '"d_model": 64'))
    message = r"model\.json does not fit .*checkpoints/6: embedding is \(384, 64\) .*\(384, 32\)"
    with pytest.raises(UserError, match=message):
        checkpoints.load(run)


def test_a_damaged_run_file_is_named_and_left(run, train_in, capfd):
    (run / "run.json").write_bytes((run / "run.json").read_bytes()[:50])
    assert train_in(run) == 2
    check_one_line(capfd, r"run\.json is damaged.*choose a new workdir.*can still be loaded")


def test_damaged_lines_of_the_log_are_left_out(run, train_in):
    log = run / "metrics.jsonl"
    log.write_bytes(b'{"step": 99\n\xff\n[]\n{"loss": 1}\n' + log.read_bytes())
    assert not train_in(run)
    assert [row["step"] for row in metrics_lib.read_metrics(run)] == list(range(6))


# --- what is kept -----------------------------------------------------------------------------


def test_the_last_checkpoints_are_kept_and_those_of_every_so_many_steps(tmp_path, train_in):
    every = "--config.train.checkpoint_every=1", "--config.train.keep_every=2"
    assert not train_in(tmp_path / "run", *every, "--config.train.keep_last=3")
    assert run_folder.saved_steps(tmp_path / "run") == [2, 4, 5, 6]


def test_what_is_never_saved_cannot_be_kept(tmp_path, train_in, capfd):
    assert train_in(tmp_path / "run", "--config.train.keep_every=3") == 2
    check_one_line(capfd, "keep_every=3 is no multiple of checkpoint_every=2: .* config.train.keep")


@pytest.mark.parametrize(
    "changes, saved, more",
    [
        ({}, [], 3),  # one is written while the two newest are there
        ({}, [2, 4], 1),
        ({}, [6], 0),
        ({"keep_last": 1}, [], 2),
        ({"keep_last": 9}, [], 3),
        ({"checkpoint_every": 1, "keep_last": 1, "keep_every": 2}, [], 5),
    ],
)
def test_there_has_to_be_room_for_all_checkpoints_at_a_time(changes, saved, more):
    config = get_config()
    config.train.update(changes)
    train = settings.resolve(config).runs[0].train
    assert run_folder._checkpoints_to_come(train, saved) == more


def test_every_start_says_what_made_the_run(run, train_in, monkeypatch):
    """Settings, seed, devices, versions and source revision; not where nothing is left to train."""
    assert not train_in(run)
    shutil.rmtree(run / "checkpoints" / "6")
    assert not train_in(run, "--config.train.log_every=3")
    first, second = json.loads((run / "starts.json").read_text())["starts"]
    assert (first["step"], second["step"]) == (0, 4)
    assert (first["train"]["log_every"], second["train"]["log_every"]) == (1, 3)
    assert first["seed"] == 0 and first["data"]["batch_size"] == 8
    assert first["versions"]["jax"] == jax.__version__ and first["devices"] == "1 x cpu"
    assert first["mesh"]["fsdp"] == 1 and first["source"] == starts.source_revision()


@pytest.mark.parametrize(
    "tracked, changed, expected",
    [(True, False, ""), (True, True, " with changes"), (False, False, None)],
)
def test_the_source_revision_is_of_the_repository_that_has_the_package(
    tracked, changed, expected, tmp_path, monkeypatch
):
    """Not of one that an environment happens to lie in."""
    file = tmp_path / "lib" / "__init__.py"
    file.parent.mkdir()
    file.write_text("")

    def git(*arguments):
        who = "-c", "user.name=a", "-c", "user.email=a@b"
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    if tracked:
        git("add", ".")
    git("commit", "--allow-empty", "--message=first")
    if changed:
        file.write_text("1")
    monkeypatch.setattr(starts.rope_study, "__file__", str(file))
    starts.source_revision.cache_clear()
    try:
        found = starts.source_revision()
    finally:
        starts.source_revision.cache_clear()
    assert found == (git("rev-parse", "HEAD") + expected if tracked else "unknown")


# --- one owner --------------------------------------------------------------------------------


def test_a_second_start_is_refused_and_names_the_owner(run, train_in, capfd):
    before = content(run)
    with owner.held(run):
        assert train_in(run) == 2
    line = rf"process {os.getpid()} on \S+ is writing .*run, seen \d s ago; nothing was changed"
    check_one_line(capfd, line)
    assert content(run) == before


def written_by(run, **changes):
    """Leaves the file of an owner that was killed, changed so."""
    file = run / "owner.json"
    file.unlink(missing_ok=True)
    with owner.held(run):
        content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))
    return file


def test_a_dead_process_gives_way_at_once_and_another_host_once_it_is_silent(run, train_in, capfd):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    file = written_by(run, pid=dead.pid)
    assert not train_in(run) and not file.exists()
    there = {"pid": 17, "host": "another", "machine": ["another", "", ""]}
    written_by(run, **there, seen=time.time() - 50)
    assert train_in(run) == 2
    check_one_line(capfd, r"process 17 on another .*, seen 5\d s ago; .* start again in [67]\d s\)")
    written_by(run, **there, seen=time.time() - 130)
    assert not train_in(run) and not file.exists()


def test_an_owner_says_that_it_lives_and_stops_where_it_was_replaced(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(owner, "BEAT", 0.01)
    file = tmp_path / owner.FILE
    with pytest.raises(KeyboardInterrupt), owner.held(tmp_path):
        first = json.loads(file.read_text())["seen"]
        while (now := json.loads(file.read_text()))["seen"] == first:
            time.sleep(0.01)
        theirs = json.dumps(now | {"key": "theirs"})
        for _ in range(1000):  # a beat that was under way may have come after the first
            file.write_text(theirs)
            time.sleep(0.03)
    assert file.read_text() == theirs
    assert "another process has taken" in capfd.readouterr().err


def test_of_two_that_find_the_folder_free_one_has_it(tmp_path):
    first, second = owner._OwnerFile(tmp_path), owner._OwnerFile(tmp_path)
    version = second.free_version()
    first.claim(first.free_version())
    with pytest.raises(UserError, match="another process has just begun to write"):
        second.claim(version)


def test_a_run_that_saved_nothing_starts_again_with_other_settings(tmp_path, train_in, capfd):
    """After a rate that was too high: nothing that is not finite is saved."""
    folder = tmp_path / "run"
    arguments = "--config.train.log_every=10", "--config.train.checkpoint_every=3"
    assert train_in(folder, "--config.train.learning_rate=1e30", *arguments) == 2
    check_one_line(
        capfd,
        r"gradient norm became nan at step 1: .*; no checkpoint was saved .*; set config\.tra",
    )
    assert not list((folder / "checkpoints").iterdir())
    assert not train_in(folder, *arguments)
    assert checkpoints.load(folder)


def test_a_backend_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path, train_in, capfd
):
    assert train_in(tmp_path / "run", "--config.model.attention=cudnn") == 2
    check_one_line(capfd, r"'cudnn' does not run .* 'reference' does; set config\.model\.attention")
    assert not (tmp_path / "run").exists()


def test_a_model_trained_with_another_backend_is_loaded_where_there_is_none(run):
    file = run / "model.json"
    file.write_text(file.read_text().replace('"auto"', '"cudnn"'))
    assert checkpoints.load(run)[0].config.attention == "auto"


# --- interruptions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, status, line",
    [
        (signal.SIGINT, 130, "stopped by SIGINT: step 3 of 6"),
        (signal.SIGTERM, 0, "preempted: step 5 of 6"),  # the step that ran is saved too
    ],
)
def test_a_signal_ends_in_one_line_that_says_what_is_saved(
    number, status, line, tmp_path, train_in, capfd, monkeypatch
):
    write = metrics_lib.MetricsLog.write

    def and_stop(log, step, scalars):
        write(log, step, scalars)
        if step == 3:  # is written while step 4 runs
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(metrics_lib.MetricsLog, "write", and_stop)
        assert train_in(tmp_path / "run", "--config.train.checkpoint_every=3") == status
    errors = capfd.readouterr().err
    assert f"{line} is saved in {tmp_path / 'run'}; the same command goes on" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "owner.json").exists()
    assert not train_in(tmp_path / "run")


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, train_in, capfd):
    """Files of at most 20 kB stand for it: the first checkpoint cannot be written."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert train_in(tmp_path / "run") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    check_one_line(capfd, r"checkpoints: step \d is not saved: .*larger than the system allows")
    assert not train_in(tmp_path / "run")


def test_too_little_space_is_seen_before_anything_is_written(
    tmp_path, train_in, capfd, monkeypatch
):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(files.writing.shutil, "disk_usage", lambda _: free)
    assert train_in(tmp_path / "run") == 2
    check_one_line(capfd, r"run: 0\.9 MB will be written and 0\.0 MB are free.*set config\.workdir")
    assert not (tmp_path / "run").exists()


def without_privileges(*command):
    """A command that root runs without the right to write everywhere, or None where it cannot."""
    if os.geteuid():
        return list(command)
    setpriv = shutil.which("setpriv")
    return [setpriv, "--bounding-set=-all", "--inh-caps=-all", *command] if setpriv else None


@pytest.mark.slow
def test_checkpoints_that_may_not_be_written_are_refused_at_once(run, texts):
    command = without_privileges(
        sys.executable, "-m", "rope_study.train", CONFIG, "--config.model.layers=1",
        f"--config.workdir={run}", f"--config.data.path={texts}",
    )  # fmt: skip
    if command is None:
        pytest.skip("needs setpriv, or a user that is not root")
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "checkpoints").chmod(0o555)
    try:
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    finally:
        (run / "checkpoints").chmod(0o755)
    assert done.returncode == 2
    assert "checkpoints: no permission: choose another place" in done.stderr.splitlines()[-1]
