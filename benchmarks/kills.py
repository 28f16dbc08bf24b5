"""Twenty SIGKILLs at random moments, some inside a save: the run ends as one that nobody stopped.

    python benchmarks/kills.py --out=results/kills.json

A run of the quickstart's RoPE decoder is trained once at a stretch and once through the kills, each
at a step drawn at random and a moment after it; every third waits for the next checkpoint to be
begun. Compared bit for bit are the losses of all steps, the last checkpoint's parameters and what
probe_every wrote. The test suite does the same with a smaller run and fewer kills.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import filterfalse
from pathlib import Path

import jax
import numpy as np

from rope_study import checkpoints
from rope_study.training.metrics import read_metrics
from rope_study.training.starts import source_revision, versions
from rope_study.training.usage_log import read_usage

SETTINGS = (
    "--config=configs/quickstart.py",
    "--config.model.layers=2",
    "--config.data.length=128",
    "--config.train.checkpoint_every=10",
    "--config.train.keep_every=50",
    "--config.train.probe_every=25",
)
START_SECONDS = 300  # until a run has made its next step, at most


@dataclasses.dataclass(frozen=True)
class Kill:
    """Attributes:
    step: the last one that was logged.
    saving: whether a checkpoint was half written.
    goes_on_from: the newest checkpoint that was whole.
    """

    step: int
    saving: bool
    goes_on_from: int


def train(settings: Sequence[str], folder: Path) -> subprocess.Popen:
    """Starts the command `train`."""
    command = [sys.executable, "-m", "rope_study.train", *settings, f"--config.workdir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    """Waits for the end; RuntimeError where it is not a good one."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors)


def kill(process: subprocess.Popen, folder: Path, step: int, in_save: bool, after: float) -> Kill:
    """Kills a run some seconds after a step, or after the next checkpoint was begun.

    Raises:
      RuntimeError: the run ended before, or does not come to that step.
    """
    there, begun_before = time.monotonic() + START_SECONDS, half_written(folder)
    while last_step(folder) < step or (in_save and not half_written(folder) - begun_before):
        if process.poll() is not None or time.monotonic() > there:
            process.kill()
            raise RuntimeError(f"no kill at step {step}: {process.communicate()[1]}")
        time.sleep(0.001)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    whole = max(map(int, filter(str.isdigit, names(folder))), default=0)
    return Kill(last_step(folder), bool(half_written(folder) - begun_before), whole)


def last_step(folder: Path) -> int:
    """The last step that was logged, -1 before the first."""
    rows = read_metrics(folder)
    return int(rows[-1]["step"]) if rows else -1


def half_written(folder: Path) -> set[tuple[str, int]]:
    """Checkpoints that Orbax has begun and not finished: names and inodes, as names come again."""
    found = set()
    for name in filterfalse(str.isdigit, names(folder)):
        with contextlib.suppress(FileNotFoundError):  # it is finished by now
            found.add((name, (folder / "checkpoints" / name).stat().st_ino))
    return found


def names(folder: Path) -> list[str]:
    """What lies in the folder of checkpoints."""
    at = folder / "checkpoints"
    return os.listdir(at) if at.exists() else []


def train_through_kills(
    settings: Sequence[str], folder: Path, steps: int, kills: int, seed: int = 0
) -> list[Kill]:
    """Trains to the end through kills that are spread at random over the steps."""
    draw = random.Random(seed)
    killed = []
    for number, step in enumerate(sorted(draw.sample(range(steps - 12), kills))):
        in_save = number % 3 == 1
        after = draw.uniform(0, 0.02 if in_save else 0.3)
        killed.append(kill(train(settings, folder), folder, step, in_save, after))
        print(killed[-1], file=sys.stderr)
    finish(train(settings, folder))
    return killed


def differences(folder: Path, other: Path) -> list[str]:
    """In what two runs of the same settings are not the same, bit for bit."""
    found = []
    losses = [[(row["step"], row["loss"]) for row in read_metrics(at)] for at in (folder, other)]
    if losses[0] != losses[1]:
        found.append("losses")
    params = [jax.tree.leaves(checkpoints.load(at)[1]) for at in (folder, other)]
    if not all(np.array_equal(*pair) for pair in zip(*params, strict=True)):
        found.append("parameters")
    usages = [read_usage(at) for at in (folder, other)]
    if usages[0] is None or not usages[0].identical(usages[1]):
        found.append("usage by step")
    return found


def main() -> None:
    """Trains both, compares them and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    settings = [*SETTINGS, f"--config.train.steps={asked.steps}"]
    with tempfile.TemporaryDirectory() as temporary:
        whole, folder = Path(temporary, "whole"), Path(temporary, "killed")
        finish(train(settings, whole))
        killed = train_through_kills(settings, folder, asked.steps, asked.kills, asked.seed)
        differing = differences(folder, whole)
        left = [name for name, _ in half_written(folder)]
    results = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": versions(),
        "source": source_revision(),
        "settings": settings,
        "kills": len(killed),
        "inside a save": sum(at.saving for at in killed),
        "differs from an uninterrupted run in": differing,
        "half-written checkpoints left": left,
        "each": [dataclasses.asdict(at) for at in killed],
    }
    asked.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "each"}, indent=1))


if __name__ == "__main__":
    main()
