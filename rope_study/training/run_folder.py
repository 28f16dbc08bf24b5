"""The folder a run writes: it holds one run, refuses another, and has one owner at a time.

A run is what its result depends on: model, data, training and seed, and what the encoding computes,
so that a changed function of the user's own is noticed. Where text lies, the mesh, the attention
backend, in how many parts a batch runs, and what is logged or saved when change nothing.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rope_study import sharding
from rope_study.checkpoints.runs import CHECKPOINTS, config_fields
from rope_study.data import Corpus
from rope_study.decoder import DecoderConfig
from rope_study.errors import UserError
from rope_study.files import check_writable, read_json, write_atomically
from rope_study.rotary import Rotary
from rope_study.training import owner
from rope_study.training.settings import NONE, Run, TrainSettings

RUN_FILE = "run.json"

# What may change between the start of a run and its continuation.
FREE = ("decoder.attention", "decoder.scan", "decoder.remat", "decoder.source")
FREE += ("decoder.trained_length",)  # data.length says it
FREE += ("train.checkpoint_every", "train.keep_last", "train.keep_every")
FREE += ("train.log_every", "train.profile_steps", "train.probe_every")
FREE += ("train.skip_nonfinite", "train.skip_limit")  # without, there is no other result but none
FREE += ("train.accumulate",)  # other roundings, as other devices have
ROTATION = "rotation"  # what each encoding of the pattern does to fixed queries
POSITIONS = (0, 1, 2, 7, 100, 1001)


def identity(run: Run, corpus: Corpus) -> dict[str, Any]:
    """What makes a run this run, as flat JSON values."""
    flat: dict[str, Any] = {"seed": run.seed, "data.corpus": corpus.fingerprint}
    flat["data.tokenizer"] = corpus.tokenizer.fingerprint
    flat |= {f"data.{name}": getattr(run.data, name) for name in ("length", "batch_size")}
    flat |= {f"train.{k}": v for k, v in dataclasses.asdict(run.train).items() if v != NONE}
    flat |= {f"decoder.{k}": v for k, v in config_fields(run.decoder).items()}
    flat[ROTATION] = [_rotation(spec.rotary, run.decoder) for spec in run.decoder.pattern]
    return {name: value for name, value in flat.items() if name not in FREE}


@contextlib.contextmanager
def owned(run: Run, corpus: Corpus, size: int = 0) -> Iterator[None]:
    """Makes the run's folder its own, or checks that it already is, and holds it meanwhile.

    The main process decides and tells the others; none goes on before it has.

    Args:
      run: what will be trained.
      corpus: its text.
      size: bytes of a checkpoint.

    Raises:
      UserError: it holds another run that has saved something (the settings that differ are named)
        or other files; another process that is alive writes it; or it cannot be written.
    """
    now, locks = identity(run, corpus), contextlib.ExitStack()
    with locks:
        sharding.on_main(lambda: _claim(run, now, size, locks))
        if not sharding.all_agree((run.folder / RUN_FILE).exists()):
            raise UserError(
                f"not every process of this run sees {run.folder}: give a folder on a disk that all"
                " hosts share, or gs://bucket/folder",
                "workdir",
            )
        yield


def _claim(run: Run, now: dict[str, Any], size: int, locks: contextlib.ExitStack) -> None:
    folder = run.folder
    differing = _differing(folder, now)
    for path in (folder, folder / CHECKPOINTS):
        check_writable(path, "workdir", size * _checkpoints_to_come(run.train, saved_steps(folder)))
    folder.mkdir(parents=True, exist_ok=True)
    locks.enter_context(owner.held(folder))
    if differing or not (folder / RUN_FILE).exists():
        write_atomically(folder / RUN_FILE, json.dumps(now, indent=1) + "\n")
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def _checkpoints_to_come(train: TrainSettings, saved: Sequence[int]) -> int:
    """By how many there will be more at a time: one is written before another is removed."""
    if train.steps in saved:
        return 0
    at_a_time = train.keep_last + 1
    if train.keep_every:
        at_a_time += train.steps // train.keep_every
    return max(1, min(at_a_time, math.ceil(train.steps / train.checkpoint_every)) - len(saved))


def saved_steps(folder: Path) -> list[int]:
    """The steps of which a run's folder has a checkpoint, intact or not."""
    return sorted(int(at.name) for at in (folder / CHECKPOINTS).glob("*") if at.name.isdigit())


def _differing(folder: Path, now: dict[str, Any]) -> list[str]:
    """In what the run in a folder is another one; UserError where that may not be replaced."""
    if not (folder / RUN_FILE).exists():
        check_new(folder)
        return []
    before = read_json(
        folder / RUN_FILE, ("seed",), "choose a new workdir; its checkpoints can still be loaded"
    )
    differing = [
        f"{name} is {before.get(name)!r} there and {now.get(name)!r} here"
        if name != ROTATION
        else "the encoding computes something else"
        for name in sorted(before.keys() | now.keys())
        if not _same(name, before.get(name), now.get(name))
    ]
    if differing and saved_steps(folder):
        raise UserError(
            f"{folder} holds a different run ({'; '.join(differing)}); nothing was changed:"
            " choose a new workdir",
            "workdir",
        )
    return differing


def check_new(folder: Path) -> None:
    """Refuses a folder with files in it."""
    if folder.exists() and (
        not folder.is_dir()
        # What begins so is left by a process that was killed as it began.
        or any(not path.name.startswith(owner.FILE) for path in folder.iterdir())
    ):
        raise UserError(
            f"{folder} exists and is no run of this project; nothing was changed: choose a new"
            " workdir",
            "workdir",
        )


def check_study(folder: Path) -> None:
    """Refuses a folder with files in it and no run below, and one that cannot be written."""

    def check() -> None:
        if not any(folder.glob(f"*/{RUN_FILE}")):
            check_new(folder)
        check_writable(folder, "workdir")

    sharding.on_main(check)


def _same(name: str, before: Any, now: Any) -> bool:
    if name == ROTATION:  # sums in f32, which differ in their last digits from device to device
        same_shape = np.shape(before) == np.shape(now)
        return same_shape and np.allclose(before, now, rtol=1e-3, atol=1e-3)
    return before == json.loads(json.dumps(now))


def _rotation(encoding: Rotary, config: DecoderConfig) -> list[float]:
    """What an encoding makes of fixed queries at POSITIONS: a fixed projection of each, f32."""
    draw = np.random.RandomState(0).standard_normal
    shape = (1, len(POSITIONS), config.heads, config.head_dim)
    x, onto = draw(shape).astype(np.float32), draw(shape[2:])
    rotated = encoding(jnp.asarray(x), jnp.asarray([POSITIONS]))
    projected = np.einsum("btnh,nh->t", np.asarray(rotated, np.float64), onto)
    return [float(f"{value:.5g}") for value in projected]
