"""The small model that notebooks begin with: a decoder of `make study`, trained where missing."""

import os
from pathlib import Path

from rope_study import data, study
from rope_study.checkpoints import runs
from rope_study.decoder import variants
from rope_study.errors import UserError, nearest
from rope_study.training import run_folder, settings, trainer


def small_model(folder: str | os.PathLike = "runs/quickstart", encoding: str = "rope") -> Path:
    """The folder of a trained run, for checkpoints.load; about a minute on two cores where missing.

    It is one run of the study in configs/quickstart.py, which goes on from here and from which
    this goes on: 4 layers of width 128, 4 heads of 32 rotary pairs, 512,000 bytes of Python's own
    documentation and sources.

    Args:
      folder: of the study.
      encoding: which of the study's encodings.

    Raises:
      UserError: the folder holds another study, or the study has no such encoding.
    """
    config = settings.quickstart()
    config.workdir = os.fspath(folder)
    name = variants.name(encoding)
    known = [variants.name(one) for one in config.encodings]
    if name not in known:
        raise UserError(
            f"the study has no {encoding!r}.{nearest(name, known)} It has {', '.join(known)}"
        )
    run = Path(folder) / study.folder_name(name)
    if (run / runs.MODEL_FILE).exists():
        with runs.Manager(run) as manager:
            if manager.latest() == config.train.steps:
                return run
    corpus = data.load_corpus(config)
    decoders = dict(study.build_decoders(config, corpus.tokenizer.vocab_size))
    run_folder.claim(Path(folder), run_folder.identity(config, corpus=corpus.fingerprint))
    trainer.train(decoders[name], corpus, config, run, label=name)
    return run
