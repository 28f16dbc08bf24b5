"""The study of `make study`, and its decoders trained where missing: what notebooks begin with."""

import os
from pathlib import Path

from rope_study import sharding
from rope_study.data import load_corpus
from rope_study.training import settings
from rope_study.training.trainer import train


def config() -> settings.Config:
    """For two cores, and large enough that the encodings separate."""
    config = settings.default()
    config.workdir = "runs/quickstart"
    config.encodings = ("rope", "nope", "p_rope(p=0.75)")
    config.data.batch_size = 8
    config.train.steps = 250
    config.train.warmup = 25
    config.train.learning_rate = 3e-3
    config.train.checkpoint_every = 50
    config.train.log_every = 1
    config.train.probe_every = 25
    config.evaluate.windows = 256
    config.probe.windows = 32
    return config


def small_model(folder: str | os.PathLike = "runs/quickstart", encoding: str = "rope") -> Path:
    """The folder of a trained run, for checkpoints.load; about a minute on two cores where missing.

    It is one run of the study in configs/quickstart.py, which goes on from here and from which
    this goes on: 4 layers of d_model 128, 4 heads of 32 rotary pairs, 512,000 bytes of Python's own
    documentation and sources.

    Args:
      folder: of the study.
      encoding: an encoding, such as "p_rope(p=0.75)".

    Raises:
      UserError: the folder holds another run, or there is no such encoding.
    """
    settings_of_study = config()
    settings_of_study.workdir = os.fspath(folder)
    study = settings.resolve(settings_of_study, [encoding])
    run = study.runs[0]
    train(run, load_corpus(run.data), sharding.make_layout(study.mesh, study.rules))
    return run.folder
