"""Files: whole or not at all, looked at before work begins, and what the system refuses."""

import errno
import importlib
import os
import subprocess
import sys

import pytest
import xarray
from commands import check_one_line, run_command

from rope_study import command, files, probe, probes, study, train
from rope_study.errors import UserError


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EROFS, "the file system is read-only: choose another place"),
        (errno.EACCES, "no permission: choose another place"),
        (errno.ENOTDIR, "a part of the path is a file"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_path(number, remedy):
    error = files.explain(OSError(number, os.strerror(number), b"runs/x"), "workdir")
    assert str(error).startswith(f"runs/x: {remedy}") and error.argument == "workdir"


@pytest.mark.parametrize("path", ["file/below", "file/below/it", "/proc/x", "/proc/x/y"])
def test_a_place_that_cannot_be_written_is_known_before(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=rf"^{path}: "):
        files.check_writable(path, "out")
    files.check_writable("new/folder/and/file.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    target = tmp_path / "sub" / "a.json"
    files.write_atomically(target, "one")
    with pytest.raises(UserError, match="the disk is full"), files.atomic(target) as part:
        part.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))
    assert target.read_text() == "one"
    with pytest.raises(KeyError), files.atomic(target) as part:
        part.write_text("ha")
        raise KeyError
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_a_store_replaces_a_store_and_nothing_else(tmp_path):
    """The reader's own folder that happens to end in .zarr is left alone."""
    dataset = xarray.Dataset({"a": ("x", [1.0])})
    (tmp_path / "notes.zarr").mkdir()
    (tmp_path / "notes.zarr" / "thesis.txt").write_text("years of work")
    for name in ("notes.zarr", "notes.nc"):
        (tmp_path / "notes.nc").mkdir(exist_ok=True)
        (tmp_path / "notes.nc" / "a.txt").write_text("mine")
        with pytest.raises(UserError, match="is a folder with other files; nothing was changed"):
            probes.save(dataset, tmp_path / name)
    assert (tmp_path / "notes.zarr" / "thesis.txt").read_text() == "years of work"
    for suffix in (".zarr", ".nc"):
        for value in (1.0, 2.0):
            probes.save(dataset + value, tmp_path / f"new{suffix}")
        assert xarray.load_dataset(tmp_path / f"new{suffix}").a == 3.0
    assert {p.name for p in tmp_path.iterdir()} == {"notes.zarr", "notes.nc", "new.zarr", "new.nc"}


def test_the_home_folder_is_known_where_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    probes.save(xarray.Dataset({"a": ("x", [1.0])}), "~/a.nc")
    assert files.check_new_folder("~/x") == tmp_path / "x"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


# --- commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [study, train])
@pytest.mark.parametrize("workdir", ["/proc/x", "{folder}/file/run"])
def test_a_workdir_that_cannot_be_written_is_refused(module, workdir, texts, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    workdir = workdir.format(folder=tmp_path)
    where = f"--config.workdir={workdir}", f"--config.data.path={texts}"
    assert run_command(module.main, "--config=tests/tiny_config.py", *where) == 2
    check_one_line(capfd, rf"error: {workdir}.*: .*; set config\.workdir$")


@pytest.mark.parametrize("out", ["/proc/x", "{folder}/file/x"])
def test_a_probe_looks_at_its_folder_before_it_reads(out, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    out = out.format(folder=tmp_path)
    assert run_command(probe.main, "--checkpoint=absent", f"--out={out}") == 2
    check_one_line(capfd, rf"error: {out}: .*; set --out$")


def test_the_home_folder_is_known_in_config(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_command(train.main, "--config=~/absent.py") == 2
    check_one_line(capfd, rf"{tmp_path}/absent\.py")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_has_every_flag_and_field_and_status_0(name, capfd):
    module = importlib.import_module(f"rope_study.{name}")
    assert run_command(module.main, "--help") == 0
    printed = capfd.readouterr().out
    assert printed.startswith(module.__doc__.splitlines()[0])
    expected = ["--debug"]
    if name in ("study", "train"):
        expected += ["--config", "--config.train.steps=1000", "--config.model.head_dim=None"]
        expected += ["sequences a step, over all devices", "--config.workdir='runs/study'"]
    elif name not in ("encodings", "prepare", "plan"):
        expected += ["--checkpoint", "--rotary", "--dtype", "--mesh='fsdp=-1'", "--step"]
    for text in expected:
        assert text in printed
    assert "--alsologtostderr" not in printed


def test_help_of_the_program_names_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rope-study", "--help"])
    command.main()
    assert "study|train|prepare|evaluate" in capsys.readouterr().out


def test_a_reader_who_has_had_enough_is_no_error():
    """As in `... --help | head -1`: nothing on stderr."""
    done = subprocess.run(
        f"{sys.executable} -u -m rope_study.encodings | head -1",
        shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("Encodings") and done.stderr == ""
