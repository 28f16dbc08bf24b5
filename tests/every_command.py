"""Runs every command but `train` in a process among others: python every_command.py folder texts.

Then the first process dies, while the others wait for it.
"""

import importlib
import os
import signal
import sys
import traceback

import jax
import numpy as np
from absl import flags

from rope_study import checkpoints, sharding
from rope_study.sharding import ending
from rope_study.study import study
from rope_study.training import settings
from tests.commands import forget_flags
from tests.tiny_config import get_config


def run(command, *arguments):
    module = importlib.import_module(f"rope_study.{command}")
    forget_flags()
    module.define_flags()
    flags.FLAGS([module.__name__, *arguments])
    module.run()


def main(folder, texts):
    sharding.start()
    ending.begin()
    config = get_config()
    config.workdir, config.data.path = f"{folder}/study", texts
    config.encodings, config.train.steps, config.model.layers = ("rope",), 2, 1
    study(settings.resolve(config))
    checkpoint = f"{folder}/study/rope_theta10000_seed0"
    model = f"--checkpoint={checkpoint}"
    run("evaluate", model, f"--data={texts}", "--texts=8", "--lengths=16", f"--out={folder}/losses")
    run("generate", model, "--text=The", "--tokens=4")
    run("probe", model, f"--out={folder}/probe", "--string=The cats sat on mats.", "--page_texts=1")
    decoder, params = checkpoints.load(checkpoint)
    tokenizer = checkpoints.load_tokenizer(checkpoint)
    checkpoints.export(decoder, params, f"{folder}/export", tokenizer=tokenizer)
    tokens = tokenizer.encode_batch(["The cats"])[0]
    logits = sharding.to_host(jax.jit(decoder.apply)({"params": params}, tokens)[0])
    comparison = checkpoints.compare(decoder, params, {"tokens": tokens, "logits": logits})
    assert comparison.first_difference is None, comparison
    np.save(f"{folder}/logits_{jax.process_index()}.npy", logits)
    sys.stdout.flush()
    sharding.wait_for_all("commands")
    if sharding.is_main_process():
        os.kill(os.getpid(), signal.SIGKILL)
    ending.finish()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception:
        ending.fail(ending.End(1), traceback.format_exc())
