"""The folder a run writes: it holds one run, and refuses another.

A run is what its result depends on: model, data, training and seed, and what the encoding computes,
so that a changed function of the user's own is noticed. Where text lies, the mesh, the attention
backend, and how often something is logged or saved change nothing.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rope_study.checkpoints.runs import config_fields
from rope_study.data import Corpus
from rope_study.decoder import DecoderConfig
from rope_study.errors import UserError
from rope_study.files import write_atomically
from rope_study.rotary import Rotary
from rope_study.sharding import is_main_process, wait_for_all
from rope_study.training.settings import Run

RUN_FILE = "run.json"

# What may change between the start of a run and its continuation.
FREE = ("decoder.attention", "decoder.scan", "decoder.remat", "decoder.source")
FREE += ("decoder.trained_length",)  # data.length says it
FREE += ("train.checkpoint_every", "train.log_every")
ROTATION = "rotation"  # what each encoding of the pattern does to fixed queries
POSITIONS = (0, 1, 2, 7, 100, 1001)


def identity(run: Run, corpus: Corpus) -> dict[str, Any]:
    """What makes a run this run, as flat JSON values."""
    flat: dict[str, Any] = {"seed": run.seed, "data.corpus": corpus.fingerprint}
    flat["data.tokenizer"] = corpus.tokenizer.fingerprint
    flat |= {f"data.{name}": getattr(run.data, name) for name in ("length", "batch_size")}
    flat |= {f"train.{k}": v for k, v in dataclasses.asdict(run.train).items()}
    flat |= {f"decoder.{k}": v for k, v in config_fields(run.decoder).items()}
    flat[ROTATION] = [_rotation(spec.rotary, run.decoder) for spec in run.decoder.pattern]
    return {name: value for name, value in flat.items() if name not in FREE}


def claim(run: Run, corpus: Corpus) -> None:
    """Makes the run's folder its own, or checks that it already is.

    Every process checks before the main one writes, and none goes on before it has.

    Raises:
      UserError: it holds another run (the settings that differ are named) or other files.
    """
    folder, now = run.folder, identity(run, corpus)
    file = folder / RUN_FILE
    if file.exists():
        before = json.loads(file.read_text())
        differing = [
            f"{name} is {before.get(name)!r} there and {now.get(name)!r} here"
            if name != ROTATION
            else "the encoding computes something else"
            for name in sorted(before.keys() | now.keys())
            if not _same(name, before.get(name), now.get(name))
        ]
        if differing:
            raise UserError(
                f"{folder} holds a different run ({'; '.join(differing)}); nothing was changed:"
                " choose a new workdir",
                "workdir",
            )
    else:
        check_new(folder)
    wait_for_all("run folder checked")
    if is_main_process() and not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(now, indent=1) + "\n")
    wait_for_all("run folder claimed")


def check_new(folder: Path) -> None:
    """Refuses a folder with files in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is no run of this project; nothing was changed: choose a new"
            " workdir",
            "workdir",
        )


def check_study(folder: Path) -> None:
    """Refuses a folder with files in it and no run below."""
    if not any(folder.glob(f"*/{RUN_FILE}")):
        check_new(folder)


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
