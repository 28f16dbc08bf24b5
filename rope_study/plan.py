"""What a run takes on TPUs, before any is rented.

    python -m rope_study.plan --config=configs/gemma_2b_wiki.py --topology=v5e:4x4

Compiles the training step of config.model for the topology, which needs no TPU (but libtpu:
pip install 'rope_study[tpu]'), and prints its memory, FLOPs, exchanges between devices, expected
time and price. Where it does not fit the exit status is 1, and --fit looks for settings that do.
--probe plans probes of the same model instead: frequency usage of texts of --length tokens.
"""

import dataclasses
import importlib.metadata
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags

from rope_study import command
from rope_study.decoder import attention, presets, variants
from rope_study.errors import UserError
from rope_study.reports import plan as report
from rope_study.reports import programs
from rope_study.sharding import Layout, make_layout
from rope_study.sharding.chips import Chip, chip
from rope_study.sharding.mesh import Device
from rope_study.sharding.topology import topology_devices
from rope_study.training.settings import Run, Study, resolve_one

FIT = "remat, accumulate, mesh"  # in this order


def define_flags() -> None:
    """The command's flags beside --config."""
    flags.DEFINE_string("topology", None, "Version and chips along each axis: v5e:4x4, v5p:2x2x2.")
    flags.DEFINE_integer("slices", 1, "So many of them, joined by a slower network.", 1)
    flags.DEFINE_bool("fit", False, f"Where it does not fit, try {FIT}, in that order.")
    flags.DEFINE_bool("probe", False, "Plan probes instead of training.")
    flags.DEFINE_integer("length", None, "Tokens of a text to probe; config.data.length.", 2)
    flags.DEFINE_enum("dtype", "float32", list(programs.PASSES), "Of the parameters to probe.")
    flags.DEFINE_float("efficiency", 0.6, "Share of their peak that products reach.", 0.01, 1.0)
    flags.DEFINE_float("network", 3.1, "GB/s that a chip sends to other slices.", 1e-3)
    flags.DEFINE_float("price", None, "Dollars for a chip and an hour.", 0.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to compile, and for which devices.

    Attributes:
      study: with one run.
      devices: of a topology.
      chip: what they are parts of.
      slices: of the topology.
      probe: tokens of a text to probe, and the dtype of the parameters; None: to train.
    """

    study: Study
    devices: Sequence[Device]
    chip: Chip
    slices: int
    probe: tuple[int, str] | None

    @property
    def run(self) -> Run:
        """The one run."""
        return self.study.runs[0]

    @property
    def layout(self) -> Layout:
        """The mesh over the devices."""
        return make_layout(self.study.mesh, self.study.rules, self.devices)

    def program(self) -> programs.Program:
        """What `train` or `probe` would compile."""
        if self.probe is None:
            return programs.train_program(self.run, self.layout)
        return programs.probe_program(self.run.decoder, self.layout, *self.probe)

    def change(self, settings: dict[str, Any]) -> "Plan":
        """The same with other settings, by the names that they have in a configuration."""
        study, run = self.study, self.run
        decoder = dataclasses.replace(
            run.decoder, remat=settings.get("model.remat", run.decoder.remat)
        )
        train = dataclasses.replace(
            run.train, accumulate=settings.get("train.accumulate", run.train.accumulate)
        )
        run = dataclasses.replace(run, decoder=decoder, train=train)
        mesh = settings.get("mesh", study.mesh)
        return dataclasses.replace(self, study=dataclasses.replace(study, runs=(run,), mesh=mesh))


def candidates(plan: Plan) -> Iterator[dict[str, Any]]:
    """Settings that need less memory, one after the other what costs more time."""
    settings: dict[str, Any] = {}
    rows = plan.run.data.batch_size
    if plan.probe is None:
        if plan.run.decoder.remat != "full":
            settings["model.remat"] = "full"
            yield dict(settings)
        parts, shards = 2 * plan.run.train.accumulate, plan.layout.shards("batch")
        while rows % (parts * shards) == 0:
            settings["train.accumulate"] = parts
            yield dict(settings)
            parts *= 2
    for tensor in (1, 2, 4, 8, 16):
        if len(plan.devices) // plan.slices % tensor:
            return
        settings["mesh"] = f"data={plan.slices},fsdp=-1,tensor={tensor}"
        if plan.probe is None:
            settings["train.accumulate"] = max(1, rows // (len(plan.devices) // tensor))
        yield dict(settings)


def resolve(config: Any) -> tuple[Study, str | None]:
    """The one run of config.model, and what is assumed where its tokenizer cannot be read."""
    try:
        return resolve_one(config), None
    except UserError as error:
        if error.argument != "tokenizer":
            raise
        size = presets.PRESETS.make(config.model.preset, "preset").vocab_size
        note = f"the vocabulary of the preset, {size:,}: the tokenizer cannot be read"
        return resolve_one(config, size), f"{note} ({error.problem})"


def run(resolved: tuple[Study, str | None]) -> None:
    """Prints the plan; ends with 1 where the program does not fit."""
    study, note = resolved
    plan = make_plan(study)
    print(heading(plan), flush=True)
    if attempt(plan, note):
        return
    if not flags.FLAGS.fit:
        print(f"--fit tries {FIT}, in that order, and stops at the first that fits")
        sys.exit(1)
    for settings in candidates(plan):
        given = " ".join(f"--config.{name}={value}" for name, value in settings.items())
        print(f"\ntrying {given}", flush=True)
        try:
            fits = attempt(plan.change(settings), note)
        except UserError as error:  # such as heads that do not divide
            print(f"cannot be: {error.problem}")
            continue
        if fits:
            print(f"\nThe configuration does not fit as it is; it does with {given}")
            sys.exit(1)
    print("\nnothing of this fits: take more chips, or chips with more memory")
    sys.exit(1)


def make_plan(study: Study) -> Plan:
    """What the flags ask for."""
    f = flags.FLAGS
    if f.topology is None:
        raise UserError("no topology: give one, as in --topology=v5e:4x4")
    jax.config.update("jax_platforms", "cpu")  # what is at hand here does not matter
    devices = topology_devices(f.topology, f.slices)
    kind = chip(devices[0].device_kind)
    assert kind is not None, devices[0].device_kind
    length = f.length or study.runs[0].data.length
    return Plan(study, devices, kind, f.slices, (length, f.dtype) if f.probe else None)


def heading(plan: Plan) -> str:
    """What is planned, and for what."""
    run = plan.run
    if plan.probe is None:
        what = f"training on {run.data.batch_size:,} x {run.data.length:,} tokens a step"
    else:
        what = f"frequency usage of texts of {plan.probe[0]:,} tokens, parameters {plan.probe[1]}"
    chips, slices = len(plan.devices) // plan.chip.devices, f"{plan.slices} slices of "
    return (
        f"{variants.describe(run.decoder)}: {what}\n"
        f"{slices if plan.slices > 1 else ''}{flags.FLAGS.topology}: {chips} chips,"
        f" {plan.devices[0].device_kind}"
    )


def attempt(plan: Plan, note: str | None) -> bool:
    """Compiles and prints what comes of it; whether it fits."""
    start = time.monotonic()
    try:
        program = plan.program()
        compiled = programs.compile_program(program)
    except programs.OutOfMemory as error:
        print(f"does not fit, by the compiler's account: {error}")
        return False
    print(
        f"mesh {plan.study.mesh}, {running(plan)}\n"
        f"compiled in {time.monotonic() - start:.0f} s by libtpu"
        f" {importlib.metadata.version('libtpu')}; not run on a TPU\n"
    )
    print("\n".join(lines(plan, program.work, compiled, note)))
    return True


def running(plan: Plan) -> str:
    """How the decoder is run."""
    decoder = plan.run.decoder
    words = [attention.in_words(decoder, plan.layout)]
    words += [f"{'scanned' if decoder.scan else 'unrolled'} layers"]
    if plan.probe is None:
        words += [f"remat {decoder.remat}", f"accumulate {plan.run.train.accumulate}"]
    return ", ".join(words)


def lines(
    plan: Plan, work: programs.Work, compiled: programs.Compiled, note: str | None
) -> list[str]:
    """The report."""
    f, devices = flags.FLAGS, len(plan.devices)
    price = report.PRICES.get(plan.chip.name) if f.price is None else f.price
    assumed = report.Assumptions(f.efficiency, f.network, price)
    call = "step" if plan.probe is None else "batch of texts"
    timed = report.estimate(work, compiled, plan.chip, devices, assumed)
    text = [
        *report.memory_lines(compiled, plan.chip),
        *report.work_lines(work, compiled, call),
        *report.time_lines(work, timed, plan.chip, devices, call),
    ]
    if plan.probe is None:
        runs = len(plan.study.config["encodings"])
        chips = devices // plan.chip.devices
        text += report.run_lines(timed.seconds, plan.run.train.steps, runs, chips, assumed)
    text += report.assumption_lines(work, compiled, plan.chip, assumed, plan.slices)
    if plan.probe is None:
        text += [report.price_line(plan.chip, assumed)]
    return text + [f"  {note}"] * (note is not None)


def main() -> None:
    """The command."""
    command.run_config(run, resolve, __doc__, define_flags)


if __name__ == "__main__":
    main()
