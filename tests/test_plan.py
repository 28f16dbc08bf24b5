"""Plans: what is read from a compiled program, the arithmetic, and that it is the program of train.

What needs the TPU's compiler runs where libtpu is installed.
"""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import commands
import jax
import pytest
import tiny_config

from rope_study import plan, sharding
from rope_study.data import load_corpus
from rope_study.decoder import presets
from rope_study.errors import UserError
from rope_study.reports import plan as report
from rope_study.reports import programs
from rope_study.sharding import hlo, topology
from rope_study.sharding.chips import CHIPS, chip
from rope_study.training import trainer
from rope_study.training.settings import resolve_one

CONFIG = f"--config={Path(__file__).parent / 'tiny_config.py'}"
SAMPLE = Path(__file__).parent / "data" / "compiled_step.hlo"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install 'rope_study[tpu]'"
)


# --- the text of a program ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchanges():
    """Those of the sample, by kind, in its order."""
    found = {}
    for exchange in hlo.collectives(hlo.instructions(SAMPLE.read_text()), devices=8):
        found.setdefault(exchange.kind, []).append(exchange)
    return found


def test_loops_count_as_often_as_they_run(exchanges):
    """17 layers, as the first was taken out of the loop, and in each an inner loop of 4."""
    (gathered,), (permuted,) = exchanges["all-gather"], exchanges["collective-permute"]
    assert (gathered.instruction.times, permuted.instruction.times) == (17, 17 * 4)
    assert gathered.instruction.loop and gathered.instruction.exact
    assert not exchanges["reduce-scatter"][0].instruction.loop


def test_an_exchange_in_parts_counts_once(exchanges):
    """Start, what goes on beside products, and end of one gather."""
    assert [(e.size, e.group) for e in exchanges["all-gather"]] == [(512 * 128 * 2, 8)]


def test_sizes_are_of_the_whole(exchanges):
    whole = 512 * 128 * 4
    assert [e.size for e in exchanges["reduce-scatter"]] == [whole, whole]
    assert [e.size for e in exchanges["all-reduce"]] == [0, 64 * 128 * 4 + 128 * 4]
    assert [e.size for e in exchanges[hlo.BETWEEN_SLICES]] == [64 * 128 * 4]
    assert [e.size for e in exchanges["collective-permute"]] == [8 * 128 * 2]


def test_what_a_device_sends(exchanges):
    """Seven eighths to gather or scatter among eight, twice three quarters to sum among four."""
    assert exchanges["all-gather"][0].sent == 512 * 128 * 2 * 7 / 8
    assert exchanges["reduce-scatter"][1].sent == 512 * 128 * 4 * 7 / 8
    assert exchanges["all-reduce"][1].sent == (64 * 128 + 128) * 4 * 3 / 4 * 2
    assert exchanges["collective-permute"][0].sent == 8 * 128 * 2


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    text = SAMPLE.read_text().replace("constant(18)", "parameter(1)")
    program = hlo.instructions(text)
    assert not all(i.exact for i in program)
    (gathered,) = [c for c in hlo.collectives(program, 8) if c.kind == "all-gather"]
    assert gathered.instruction.times == 1


# --- arithmetic -----------------------------------------------------------------------------------


def test_time_is_that_of_the_slowest():
    """One v5e: 197 TFLOP/s at 50 %, 819 GB/s of memory, and 200 GB/s to others."""
    work = programs.Work(1000, 197e12, 2 * 197e12, passes=1)
    assumed = report.Assumptions(efficiency=0.5, network=10, price=1.0)
    where = hlo.Instruction("all-gather", "", "", "", "", times=3, exact=True, loop=True)
    gather = hlo.Collective("all-gather", 400 * 10**9, 2, where)
    between = hlo.Collective(hlo.BETWEEN_SLICES, 10 * 10**9, 2, where)
    compiled = programs.Compiled({}, 2 * 819e9, [gather, between], exact=True)
    timed = report.estimate(work, compiled, CHIPS["TPU v5e"], 1, assumed)
    assert (timed.products, timed.memory, timed.exchanges, timed.network) == (4.0, 2.0, 3.0, 3.0)
    assert timed.seconds == 4.0
    assert report.estimate(work, compiled, CHIPS["TPU v5e"], 4, assumed).seconds == 3.0


def test_hours_and_dollars():
    assumed = report.Assumptions(0.5, 1, price=1.5)
    (one, study) = report.run_lines(3.6, 1000, 7, 16, assumed)
    assert "1.0 hours, 16 chip hours, $24" in one and "7 runs: 7.0 hours, 112 chip hours" in study


def test_a_device_of_half_a_chip_has_half_of_it():
    """TPU7x: two devices a chip."""
    work = programs.Work(1, 1e15, 1153.5e12, passes=1)
    assumed = report.Assumptions(1.0, 1, None)
    compiled = programs.Compiled({}, 0, [], exact=True)
    assert report.estimate(work, compiled, CHIPS["TPU7x"], 1, assumed).seconds == pytest.approx(1)


def test_remat_computes_layers_again():
    config = dataclasses.replace(presets.PRESETS.make("tiny"), remat="full")
    once = programs.forward_flops(config, 16)
    assert programs.recomputed_flops(config, 16) == sum(once.values()) - once["unembedding"]
    config = dataclasses.replace(config, remat="dots")
    assert programs.recomputed_flops(config, 16) == once["attention"]


@pytest.mark.parametrize(
    "message, said",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
            " temporaries (112.72G) exceeds available HBM (15.75G).",
            "the total memory required for HLO temporaries (112.72G) exceeds available HBM"
            " (15.75G)",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.91G of 15.75G hbm.",
            "Used 17.91G of 15.75G hbm",
        ),
    ],
)
def test_shortage_says_the_sizes(message, said):
    assert programs.shortage(message) == said


# --- the program --------------------------------------------------------------------------------


def test_it_is_the_program_of_train(tmp_path, texts, monkeypatch):
    """The text of what `train` runs, from the arrays that it runs on, and of what is planned."""
    config = tiny_config.get_config()
    config.data.path, config.workdir = str(texts), str(tmp_path / "run")
    study = resolve_one(config)
    (run,), layout = study.runs, sharding.make_layout(study.mesh)
    ran = []
    make = trainer.make_trainer

    def make_and_record(*arguments):
        made = make(*arguments)
        step = made.step

        def recorded(*arrays):
            ran.append(step.lower(*arrays).as_text())
            return step(*arrays)

        monkeypatch.setattr(made, "step", recorded)
        return made

    monkeypatch.setattr(trainer, "make_trainer", make_and_record)
    trainer.train(run, load_corpus(run.data), layout)
    planned = programs.train_program(run, layout).lowered.as_text()
    assert set(ran) == {planned}


def test_memory_by_what_it_holds():
    """AdamW holds two arrays for each of the model."""
    (run,) = resolve_one(tiny_config.get_config()).runs
    program = programs.train_program(run, sharding.make_layout())
    compiled = programs.compile_program(program)
    parameters = compiled.memory["parameters"]
    assert 2 * parameters < compiled.memory["optimizer state"] < 2.01 * parameters
    assert compiled.memory["batch"] == 8 * 33 * 4
    assert 0 <= compiled.memory["other arguments, padding"] < 0.01 * parameters
    assert compiled.exact and compiled.exchanges == []


@pytest.mark.eight_devices
def test_memory_is_of_one_device():
    (run,) = resolve_one(tiny_config.get_config()).runs
    trees = programs.train_program(run, sharding.make_layout("fsdp=8")).arguments
    whole = sum(x.size * 4 for x in jax.tree.leaves(trees["parameters"]))
    part = programs.bytes_on_device(trees["parameters"])
    assert whole / 8 <= part < 1.1 * whole / 8  # norms are whole on every device
    assert programs.bytes_on_device(trees["batch"]) == 33 * 4


def test_probes_are_planned_as_they_run():
    config = presets.PRESETS.make("tiny")
    program = programs.probe_program(config, sharding.make_layout(), 64, "bfloat16")
    assert program.work.tokens == 64 and program.work.passes == 6
    assert programs.bytes_on_device(program.arguments["parameters"]) > 0
    assert "xf32>" in program.lowered.as_text() and "64x64xbf16" not in program.lowered.as_text()


# --- the search ---------------------------------------------------------------------------------


def a_plan(**settings) -> plan.Plan:
    (run,) = (study := resolve_one(tiny_config.get_config())).runs
    decoder = dataclasses.replace(run.decoder, remat="none")
    study = dataclasses.replace(study, runs=(dataclasses.replace(run, decoder=decoder),))
    return plan.Plan(study, jax.devices(), CHIPS["TPU v5e"], 1, **({"probe": None} | settings))


def test_order_of_the_search():
    """First remat, then parts of the batch down to a row a device, then the mesh."""
    tried = list(plan.candidates(a_plan()))
    assert tried[0] == {"model.remat": "full"}
    assert [t.get("train.accumulate") for t in tried[1:4]] == [2, 4, 8]
    assert [t.get("mesh") for t in tried[4:]] == ["data=1,fsdp=-1,tensor=1"]
    changed = a_plan().change(tried[3])
    assert changed.run.decoder.remat == "full" and changed.run.train.accumulate == 8
    assert all(set(t) == {"mesh"} for t in plan.candidates(a_plan(probe=(64, "float32"))))


@pytest.fixture
def here(monkeypatch):
    """The command plans for the CPU; what needs more than remat=none does not fit."""
    kind = dataclasses.replace(CHIPS["TPU v5e"], name="v5e")
    monkeypatch.setattr(plan, "topology_devices", lambda name, slices: jax.devices())
    monkeypatch.setattr(plan, "chip", lambda device: kind)
    monkeypatch.setattr(plan.importlib.metadata, "version", lambda name: "0")


def test_the_command(here, capfd):
    assert commands.run_command(plan.main, CONFIG, "--topology=v5e:2x2", "--price=2") == 0
    printed = capfd.readouterr().out
    for line in ("optimizer state", "together: fits", "tokens/s, MFU", "6 steps:", "as given"):
        assert line in printed
    assert "not run on a TPU" in printed


def test_where_it_does_not_fit(here, capfd, monkeypatch):
    """The status is 1; --fit goes on until something fits, and prints what to give."""

    def fits(program: programs.Program, real=programs.compile_program) -> programs.Compiled:
        tried.append(program)
        if len(tried) < 3:
            raise programs.OutOfMemory("Used 20G of 16G hbm")
        return real(program)

    tried: list = []
    monkeypatch.setattr(programs, "compile_program", fits)
    run = functools.partial(commands.run_command, plan.main, CONFIG, "--topology=v5e:2x2")
    assert run() == 1
    assert "does not fit, by the compiler's account: Used 20G" in capfd.readouterr().out
    tried.clear()
    assert run("--fit") == 1
    wanted = "it does with --config.model.remat=full --config.train.accumulate=2"
    assert wanted in capfd.readouterr().out


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), r"no topology: give one, as in --topology=v5e:4x4"),
        (
            ("--topology=v5e:4x5",),
            r"unknown topology 'v5e:4x5'. Did you mean 'v5e:.*'\? Known: v5e and v6e",
        ),
        (("--topology=v7x:2x2x1",), r"unknown topology 'v7x:2x2x1'.*v4, v5p and tpu7x with 2x2x1"),
    ],
)
def test_refusals(arguments, message, capfd):
    assert commands.run_command(plan.main, CONFIG, *arguments) == 2
    commands.check_one_line(capfd, message)


def test_without_libtpu(capfd, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert commands.run_command(plan.main, CONFIG, "--topology=v5e:4x4") == 2
    commands.check_one_line(capfd, r"needs libtpu: pip install 'rope_study\[tpu\]'")


def test_slices_split_batches_only():
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 2) for i in range(4)]
    with pytest.raises(UserError, match="data must be a multiple of 2, as in 'data=2,fsdp=-1'"):
        sharding.make_layout("fsdp=-1", devices=devices)


def test_a_tokenizer_that_is_not_here():
    """A plan is made without; it says so."""
    config = tiny_config.get_config()
    config.data.tokenizer = "missing.model"
    study, note = plan.resolve(config)
    assert study.runs[0].decoder.vocab_size == 384 and note is not None
    assert "'missing.model' is not a file" in note


def test_every_topology_has_a_known_chip():
    names = {known.name for known in CHIPS.values()}
    assert set(topology.TOPOLOGIES) <= names and set(report.PRICES) <= names
    assert chip("TPU v5 lite") is CHIPS["TPU v5e"]
