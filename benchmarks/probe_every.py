"""What train.probe_every costs: its share of the time of training, at one reading in N steps.

    python benchmarks/probe_every.py --out=results/probe_every.json
    python benchmarks/probe_every.py --config=configs/table2_small.py --every=100   # on a GPU

Steps of a study's first run and readings of usage_log.py take turns in one process: ten steps, then
a reading with all that it does, the written file included. On CPUs CPU seconds are compared, so
that other work on the machine changes little, elsewhere seconds. What the probe takes to compile is
apart, as it comes once.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from rope_study import sharding
from rope_study.data import load_corpus
from rope_study.training import settings, trainer
from rope_study.training.prefetch import batch_reader
from rope_study.training.starts import source_revision, versions
from rope_study.training.usage_log import WINDOWS, UsageLog

STEPS = 10  # before every reading


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--every", type=int, help="Steps; the configuration's if not given.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    study = settings.resolve(read_config(asked.config))
    every = asked.every or study.runs[0].train.probe_every
    with tempfile.TemporaryDirectory() as folder:
        train = dataclasses.replace(study.runs[0].train, probe_every=1)
        run = dataclasses.replace(study.runs[0], folder=Path(folder), train=train)
        measured = measure(run, sharding.make_layout(study.mesh, study.rules), asked.rounds)
    step, reading = (statistics.median(measured[name]) for name in ("step", "reading"))
    results = {
        "command": f"python benchmarks/probe_every.py --config={asked.config} --every={every}",
        "machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "versions": versions(),
        "source": source_revision(),
        "unit": "CPU seconds" if on_cpu() else "seconds",
        "a step": round(step, 4),
        f"a reading of {WINDOWS} windows": round(reading, 4),
        "compiling the probe, once": round(measured["compile"][0], 2),
        "every": every,
        "percent of the time of training": round(100 * reading / (every * step + reading), 2),
        "the same with compiling, of a whole run": round(
            100 * share(measured["compile"][0], reading, step, run.train.steps, every),
            2,
        ),
    }
    print(json.dumps(results, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=1) + "\n")


def share(compiling: float, reading: float, step: float, steps: int, every: int) -> float:
    """Of a run's time, with the readings at its first step and after its last."""
    probing = compiling + (steps // every + 1) * reading
    return probing / (probing + steps * step)


def read_config(path: str) -> Any:
    """What get_config of a file gives."""
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def on_cpu() -> bool:
    """Whether the devices are CPUs."""
    return jax.default_backend() == "cpu"


def measure(run: settings.Run, layout: sharding.Layout, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, of a reading, and of what the first reading took beyond others."""
    clock = time.process_time if on_cpu() else time.perf_counter
    corpus = load_corpus(run.data)
    made = trainer.make_trainer(run, layout)
    batch_of, state = batch_reader(run, corpus, made.layout), made.init()
    usage = UsageLog(run, corpus, made.decoder, first=0)
    seconds: dict[str, list[float]] = {"step": [], "reading": []}
    for number in range(rounds + 1):
        start = clock()
        for step in range(number * STEPS, (number + 1) * STEPS):
            state, metrics = made.step(state, batch_of(step))
        jax.block_until_ready((state, metrics))
        stepped = clock()
        usage.read(number, state.params)
        usage.save()
        seconds["step"].append((stepped - start) / STEPS)
        seconds["reading"].append(clock() - stepped)
    first = {name: of.pop(0) for name, of in seconds.items()}  # compiles
    return seconds | {"compile": [first["reading"] - statistics.median(seconds["reading"])]}


if __name__ == "__main__":
    main()
