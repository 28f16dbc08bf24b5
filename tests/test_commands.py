"""Commands: wrong input is one line with the setting to change and status 2; nothing is written."""

import subprocess
import sys

import pytest
from commands import check_one_line, forget_flags, run_command

from rope_study import command, evaluate, study

CONFIG = "--config=tests/tiny_config.py"

WRONG = {
    "encoding": ("--config.encodings=('rpe',)", r"unknown encoding 'rpe'.*'rope'.*set config\.enc"),
    "p": ("--config.encodings=('p_rope(1.5)',)", r"p=1\.5 must lie in \[0, 1\].*set config\.enc"),
    "no encodings": ("--config.encodings=()", r"no encodings.*set config\.encodings"),
    "one folder": ("--config.encodings=('rope', 'rope()')", r"would share the folder rope_theta"),
    "seeds": ("--config.seeds=(1, 1)", r"must be different whole numbers.*set config\.seeds"),
    "head_dim": ("--config.model.head_dim=15", r"head_dim=15 is odd.*config\.model\.head_dim"),
    "heads": ("--config.model.heads=3", r"heads=3 is not a multiple of kv_heads=2.*model\.heads"),
    "preset": ("--config.model.preset=tinny", r"unknown preset 'tinny'.*'tiny'.*model\.preset"),
    "field": ("--config.train.stepps=3", r"stepps.*steps"),
    "type": ("--config.train.steps=many", r"many"),
    "range": ("--config.train.steps=0", r"steps=0 must be at least 1; set config\.train\.steps"),
    "windows": ("--config.probe.windows=0", r"at least 1; set config\.probe\.windows$"),
    "rate": ("--config.train.learning_rate=-1.", r"learning_rate=-1\.0 must be a positive"),
    "length": ("--config.data.length=1", r"length=1.*set config\.data\.length$"),
    "batch": (
        "--config.train.accumulate=3",
        r"batch_size=8 is no multiple of 3.* accumulate=3 times 1 device.*set config\.data\.batch",
    ),
    "profile": (
        "--config.train.profile_steps=3:9",
        r"'3:9' must be first:stop within the steps 0:6, such as '3:6'.*config\.train\.profile_s",
    ),
    "profile backwards": ("--config.train.profile_steps=3:2", r"'3:2' must be first:stop"),
    "mesh": ("--config.mesh=fsdp=5", r"does not fit 1 device.*set config\.mesh"),
    "rules": ("--config.rules.embed=fsd", r"rules\.embed='fsd'.*set config\.rules\.embed"),
    "one axis twice": ("--config.rules.mlp=fsdp", r"twice over the same.*set config\.rules\.mlp"),
    "tokenizer": ("--config.data.tokenizer=no.model", r"no\.model.*set config\.data\.tokenizer"),
    "argument": ("extra", r"unexpected argument 'extra'"),
    "flag": ("--confg.seed=1", r"confg"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings(case, texts, tmp_path, capfd):
    argument, message = WRONG[case]
    folder = tmp_path / "run"
    where = f"--config.workdir={folder}", f"--config.data.path={texts}"
    assert run_command(study.main, CONFIG, *where, argument) == 2
    check_one_line(capfd, message)
    assert not folder.exists()


TEXTS = {
    "missing": ({}, r"texts.*set config\.data\.path"),
    "empty": ({"a.txt": b" \n\n"}, r"holds no text.*set config\.data\.path"),
    "not UTF-8": ({"latin.txt": "façade".encode("latin-1")}, r"latin\.txt.*UTF-8"),
    "short": ({f"{i}.txt": f"{i} word".encode() for i in range(30)}, r"one batch needs 256"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_wrong_texts(case, tmp_path, capfd):
    files, message = TEXTS[case]
    (tmp_path / "texts").mkdir()
    for name, content in files.items():
        (tmp_path / "texts" / name).write_bytes(content)
    folder = tmp_path / "run"
    where = f"--config.workdir={folder}", f"--config.data.path={tmp_path / 'texts'}"
    assert run_command(study.main, CONFIG, *where) == 2
    check_one_line(capfd, message)
    assert not folder.exists()


def test_no_config_and_a_missing_config_file(capfd):
    assert run_command(study.main) == 2
    check_one_line(capfd, r"no configuration.*configs/quickstart\.py")
    assert run_command(study.main, "--config=configs/absent.py") == 2
    check_one_line(capfd, r"configs/absent\.py")


def test_a_workdir_with_other_files_is_left_alone(texts, tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("years of work")
    where = f"--config.workdir={tmp_path}", f"--config.data.path={texts}"
    assert run_command(study.main, CONFIG, *where) == 2
    check_one_line(capfd, r"no run of this project.*set config\.workdir")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_debug_shows_where_an_error_comes_from():
    """And nothing is lost of it without."""
    arguments = [CONFIG, "--config.encodings=('rpe',)"]
    with pytest.raises(ValueError, match="unknown encoding 'rpe'"):
        run_in_debug(study.main, *arguments)


def run_in_debug(main, *arguments):
    """An error of the command as it was raised."""
    forget_flags()
    argv, sys.argv = sys.argv, ["study", "--debug", *arguments]
    try:
        main()
    finally:
        sys.argv = argv


def test_flags_name_themselves_in_errors(capfd):
    assert run_command(evaluate.main) == 2
    check_one_line(capfd, r"no checkpoint: give one, as in --checkpoint=")
    assert run_command(evaluate.main, "--data=absent", "--checkpoint=x") == 2
    check_one_line(capfd, r"'absent' is no file or folder")


def test_one_program_runs_every_command():
    """`rope-study encodings` prints what the module prints; a typo names the nearest."""
    run = "import sys; sys.argv = ['rope-study', {!r}]; from rope_study.command import main; main()"
    listing = subprocess.run(
        [sys.executable, "-c", run.format("encodings")], capture_output=True, text=True, check=True
    )
    assert "p_rope(p=0.75" in listing.stdout
    refusal = subprocess.run(
        [sys.executable, "-c", run.format("studdy")], capture_output=True, text=True
    )
    assert refusal.returncode == 2
    assert refusal.stderr.startswith("error: unknown command 'studdy'. Did you mean 'study'?")
    assert set(command.COMMANDS) == {
        "study", "train", "evaluate", "probe", "generate", "encodings", "plan", "prepare",
    }  # fmt: skip


def test_importing_the_library_defines_no_flag_and_starts_no_device():
    """In a process of its own: every module, and what it did to JAX and to absl."""
    code = (
        "import pkgutil, importlib, rope_study\n"
        "from absl import flags\n"
        "for module in pkgutil.walk_packages(rope_study.__path__, 'rope_study.'):\n"
        "    importlib.import_module(module.name)\n"
        "modules = flags.FLAGS.flags_by_module_dict()\n"
        "ours = [module for module in modules if 'rope_study' in module]\n"
        "assert not ours, ours\n"
        "import jax\n"
        "assert not jax._src.xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
