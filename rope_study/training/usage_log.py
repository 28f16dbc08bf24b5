"""How a run comes to use its rotary pairs: the probe frequency_usage every few steps, in one file.

Readings stay on the devices until a checkpoint is written, and are written right before it. So a
run that goes on from there has all before it, and takes those after it again.
"""

import sys
from pathlib import Path
from typing import Any

import xarray

from rope_study import probes, sharding
from rope_study.checkpoints.runs import DAMAGED
from rope_study.data import Corpus
from rope_study.decoder import Decoder, DecoderConfig
from rope_study.errors import UserError
from rope_study.files import move_to
from rope_study.files.paths import first_line, local_copy
from rope_study.probes.run import Repeated
from rope_study.training.settings import Run

FILE = "usage_by_step.nc"
WINDOWS = 8  # held-out ones, evenly spaced


class UsageLog:
    """Writes usage_by_step.nc to the run's folder; see read_usage for what is in it."""

    def __init__(self, run: Run, corpus: Corpus, decoder: Decoder, first: int):
        """To go on at step `first`: what a killed run wrote past it is taken again."""
        self._run, self._corpus, self._decoder = run, corpus, decoder
        self._file, self._every = run.folder / FILE, run.train.probe_every
        self._earlier: xarray.Dataset | None = None  # of the main process
        self._repeated: Repeated | None = None
        self._started: dict[int, Any] = {}  # by step, still on the devices
        self._steps = set(sharding.on_main(lambda: self._open(first)) if self._every else ())

    def _open(self, first: int) -> list[int]:
        """Reads what is there up to `first`; gives its steps."""
        # Before anything was saved the run may have had other settings.
        there = _read_or_set_aside(self._file) if first else None
        if there is None:
            return []
        self._earlier = there.isel(step=there.step.values <= first)
        return self._earlier.step.values.tolist()

    def __enter__(self) -> "UsageLog":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.save()

    def read(self, step: int, params: dict) -> None:
        """Takes a reading after `step` steps, where one is due; the devices are not waited for."""
        is_last = step == self._run.train.steps
        is_due = self._every and (step % self._every == 0 or is_last)
        never_read = not self._steps and is_last  # a run that had ended before it was asked for
        if not is_due or never_read or step in self._steps:
            return
        if self._repeated is None:
            batches, text = self._corpus.held_out_texts(WINDOWS, min(WINDOWS, self._run.microbatch))
            usage = [probes.frequency_usage]
            self._repeated = Repeated(self._decoder, params, batches, usage, text)
        self._started[step] = self._repeated.start(params)
        self._steps.add(step)

    def save(self) -> None:
        """Writes all readings; UserError where the system refuses."""
        started, self._started = self._started, {}
        if not started or not sharding.is_main_process():
            return
        assert self._repeated is not None
        readings = [] if self._earlier is None else [self._earlier]
        for step, reading in started.items():
            usage = self._repeated.finish(reading)["frequency_usage"]
            readings.append(_at_step(usage, step, self._decoder.config))
        # Learned frequencies are others at every step; all others stay without the dimension.
        options: Any = {"coords": "different", "data_vars": "all", "compat": "equals"}
        self._earlier = xarray.concat(readings, "step", **options, combine_attrs="override")
        save_in_run(self._earlier, self._file)


def _at_step(usage: xarray.Dataset, step: int, config: DecoderConfig) -> xarray.Dataset:
    distinct = list(dict.fromkeys(config.pattern))
    kinds = [distinct.index(spec) for spec in config.layer_specs]
    return usage.expand_dims(step=[step]).assign_coords(
        step=("step", [step], {"long_name": "steps that were done", "units": "1"}),
        kind=("layer", kinds, {"long_name": "alike where layers are", "units": "1"}),
    )


def read_usage(folder: Path) -> xarray.Dataset | None:
    """What a run's folder has of it: q, k, v[step, layer, head or kv_head, pair] and kind[layer].

    As frequency_usage gives them, on the same held-out windows at every step; layers of one kind
    have the same number in `kind`. None where train.probe_every was 0.

    Raises:
      UserError: the file is damaged.
    """
    file = folder / FILE
    try:
        return xarray.load_dataset(local_copy(file)) if file.exists() else None
    except Exception as error:  # NetCDF's and xarray's have nothing in common
        problem = f"{file} is damaged ({first_line(error)})"
        raise UserError(problem, remedy="remove it, nothing else needs it") from error


def _read_or_set_aside(file: Path) -> xarray.Dataset | None:
    try:
        return read_usage(file.parent)
    except UserError as error:
        print(f"{error.problem}: set aside in {DAMAGED}/", file=sys.stderr)
        move_to(file, file.parent / DAMAGED)
        return None


def save_in_run(dataset: xarray.Dataset, file: Path) -> None:
    """probes.save, where it is the run's folder that cannot be written."""
    try:
        probes.save(dataset, file)
    except UserError as error:
        raise UserError(error.problem, "workdir") from error
