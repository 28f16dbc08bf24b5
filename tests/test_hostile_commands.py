"""Every flag and setting of every command with hostile values: one line and status 2, or it begins.

Flags and settings are asked for their names and types, so that a new one is swept by itself. What
is let through stops where the command would begin to train or to compile.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
from absl import flags
from commands import forget_flags, run_command
from ml_collections import ConfigDict
from public_calls import CONFIG, write_run
from random_parameters import random_parameters

from rope_study import command, plan
from rope_study.data.preparation import run as preparation
from rope_study.decoder import fit_layout, sampling
from rope_study.training import evaluate, settings, trainer

WHOLE = "-1", "0", f"{2**63}", f"{2**32}", "1e308", "nan", "1.5", "x", "", "True", "None"
REAL = "nan", "inf", "-inf", "-1", "0", "1e308", "1e-320", "x", "", "True", "None"
YES_OR_NO = "2", "x", "", "None"
TEXT = (
    "", " ", "no such thing", "$x^$", "a,b", "rope(", "p_rope(nan)", "p_rope(p=1e308)", "math:sqrt",
    "/dev/null/x", "/proc/x", "~nobody_at_all/x", "x" * 300, "nul\0", "\udce9", "\n", "float64",
    "fsdp=0", "learned_rope",
)  # fmt: skip
SEVERAL = (
    "()", "(None,)", "(1.5,)", "('',)", "(True,)", "(-1,)", f"({2**63},)", "((1,),)", "(", "nan",
    "3", "('rope', 'rope()')", "('\udce9',)",
)  # fmt: skip
BY_TYPE = {int: WHOLE, float: REAL, bool: YES_OR_NO, str: TEXT, tuple: SEVERAL}
BY_FLAG = {"int": WHOLE, "float": REAL, "bool": YES_OR_NO}  # all others take text
TINY = Path(__file__).with_name("tiny_config.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    write_run(folder, random_parameters(CONFIG))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """In an empty folder, commands end with status 0 where they would begin to work."""

    def stop(*_):
        sys.exit(0)

    def train(run, corpus, layout):
        fit_layout(run.decoder, layout).check_rows(run.data.batch_size)
        stop()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(sampling, "_jitted", stop)
    monkeypatch.setattr(evaluate, "check_length", stop)
    monkeypatch.setattr(preparation, "_owned", stop)
    monkeypatch.setattr(plan, "attempt", stop)
    # rope_study.probes.run is also the function in it.
    monkeypatch.setattr(sys.modules["rope_study.probes.run"], "_jitted", stop)


def leaves(config, prefix="config."):
    """Every setting with its type."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from leaves(config[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", config.get_type(name)


def defined(define_flags) -> dict[str, str]:
    """Every flag with its type."""
    forget_flags()
    before = set(flags.FLAGS)
    define_flags()
    return {name: flags.FLAGS[name].flag_type() for name in set(flags.FLAGS) - before}


def sweep(name, usual, values, folder, capfd) -> list[str]:
    """What is wrong with how a command ends, for each value of each flag."""
    main = importlib.import_module(f"rope_study.{name}").main
    faults = []
    for flag, value in ((key, value) for key, listed in values.items() for value in listed):
        given = usual | {flag: value}
        if flag == "text":
            given.pop("string", None)
        try:
            status = run_command(main, *(f"--{one}={text}" for one, text in given.items()))
        except Exception as error:
            faults.append(f"--{flag}={value!r}: {type(error).__name__}: {error}")
            continue
        lines = [line for line in capfd.readouterr().err.splitlines() if line[:7] == "error: "]
        if status not in (0, 2) or len(lines) != status / 2 or os.listdir(folder):
            faults.append(f"--{flag}={value!r}: status {status}, {lines}, {os.listdir(folder)}")
    return faults


@pytest.mark.parametrize("name", ["study", "train"])
def test_hostile_settings(name, texts, tmp_path, capfd):
    usual = {"config": TINY, "config.workdir": tmp_path / "run", "config.data.path": texts}
    values = {path: BY_TYPE[kind] for path, kind in leaves(settings.default())}
    assert not sweep(name, usual, values, tmp_path, capfd)


@pytest.mark.parametrize("name", ["prepare", "evaluate", "generate", "probe", "encodings", "plan"])
def test_hostile_flags(name, run, texts, tmp_path, capfd):
    module = importlib.import_module(f"rope_study.{name}")
    kinds = defined(getattr(module, "define_flags", dict))
    of_models = defined(command.define_model_flags)
    usual = {
        "prepare": {"input": texts, "out": tmp_path / "out", "tokenizer": "bytes"},
        "plan": {"config": TINY, "config.data.path": texts, "topology": "v5e:2x2"},
        "evaluate": {"checkpoint": run, "data": texts},
        "generate": {"checkpoint": run},
        "probe": {
            "checkpoint": run,
            "string": "A text of sixteen tokens.",
            "out": tmp_path / "out",
        },
    }.get(name, {})
    if name != "generate":  # one is enough for the flags of all
        kinds = {flag: kind for flag, kind in kinds.items() if flag not in of_models}
    values = {flag: BY_FLAG.get(kind, TEXT) for flag, kind in kinds.items()} | {"debug": YES_OR_NO}
    assert not sweep(name, usual, values, tmp_path, capfd)


def test_commands_are_all_swept():
    with_flags = {"prepare", "evaluate", "generate", "probe", "encodings", "plan"}
    assert set(command.COMMANDS) == {"study", "train", *with_flags}
