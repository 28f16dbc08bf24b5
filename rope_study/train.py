"""Training one decoder: `python -m rope_study.train --config=configs/x.py`."""

from pathlib import Path

import ml_collections

from rope_study import command, data
from rope_study.decoder import Decoder, fit_layout
from rope_study.sharding import is_main_process
from rope_study.training import run_folder as workdir
from rope_study.training import settings as config_lib
from rope_study.training.evaluate import evaluate
from rope_study.training.trainer import train


def main(config: ml_collections.ConfigDict) -> None:
    """Trains `config.model.rotary` in `config.workdir` and prints its held-out perplexity."""
    corpus = data.load_corpus(config)
    decoder_config = config_lib.decoder_config(config, corpus.tokenizer.vocab_size)
    layout = fit_layout(decoder_config, sharding.make_layout(config.mesh))
    layout.check_rows(config.data.batch_size)
    decoder, folder = Decoder(decoder_config, layout), Path(config.workdir)
    workdir.claim(folder, workdir.identity(config, corpus=corpus.fingerprint))
    params = train(decoder, corpus, config, folder)
    result = evaluate(decoder, params, corpus.held_out_batches(config.evaluate.windows))
    if is_main_process():
        print(f"held-out perplexity {result.perplexity:.4f}, loss {result.loss:.4f} nats/token")


if __name__ == "__main__":
    command.run(main)
