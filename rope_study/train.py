"""Trains one decoder: `python -m rope_study.train --config=configs/quickstart.py`.

What is trained is config.model, in config.workdir itself; its held-out perplexity is printed.
"""

from rope_study import command, sharding
from rope_study.data import load_corpus
from rope_study.training import trainer
from rope_study.training.evaluate import evaluate
from rope_study.training.settings import Study, resolve_one


def train(study: Study) -> None:
    """Trains or goes on with the one run of `study`."""
    (run,) = study.runs
    corpus = load_corpus(run.data, progress=sharding.is_main_process())
    decoder, params = trainer.train(run, corpus, sharding.make_layout(study.mesh, study.rules))
    batches = corpus.evaluation_batches(study.evaluate_windows, run.microbatch)
    held_out = evaluate(decoder, params, batches)
    if sharding.is_main_process():
        print(f"held-out perplexity {held_out.perplexity:.4f}, loss {held_out.loss:.4f} nats/token")


def main() -> None:
    """The command."""
    command.run_config(train, resolve_one, __doc__)


if __name__ == "__main__":
    main()
