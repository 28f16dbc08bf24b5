"""Encodings side by side: `python -m rope_study.study --config=configs/quickstart.py`.

Trains the same decoder from the same initial weights on the same batches once per encoding and
seed, evaluates each on held-out documents, probes how it uses its frequencies, and writes a table,
figures and one report. Runs that are finished are not trained again.
"""

import xarray

from rope_study import command, probes, sharding
from rope_study.data import Corpus, load_corpus
from rope_study.decoder import Decoder, fit_layout
from rope_study.reports import outputs, results
from rope_study.training import run_folder, trainer
from rope_study.training.evaluate import evaluate
from rope_study.training.metrics import read_metrics
from rope_study.training.settings import Run, Study, resolve


def study(study: Study) -> dict:
    """Runs or continues a study; returns what results.json holds.

    Raises:
      UserError: wrong text, decoders that the devices cannot run, or folders that hold something
        else; raised before anything is written.
    """
    corpus = load_corpus(study.runs[0].data, progress=sharding.is_main_process())
    layout = sharding.make_layout(study.mesh, study.rules)
    for run in study.runs:
        fit_layout(run.decoder, layout)  # not after hours of training the others
    run_folder.check_study(study.folder)
    outcomes = [_run(run, study, corpus, layout) for run in study.runs]
    summary = results.summarise(outcomes, study, corpus)
    if sharding.is_main_process():
        outputs.write(study.folder, summary, outcomes)
        print(results.table(summary["encodings"]))
        print(f"\nreport: {study.folder / 'report.html'}")
    return summary


def _run(run: Run, study: Study, corpus: Corpus, layout: sharding.Layout) -> results.Outcome:
    """Trains, evaluates and probes one encoding with one seed."""
    decoder, params = trainer.train(run, corpus, layout)
    batches = corpus.evaluation_batches(study.evaluate_windows, run.microbatch)
    held_out = evaluate(decoder, params, batches)
    usage = _probe_held_out(decoder, params, corpus, study.probe_windows, run.microbatch)
    if sharding.is_main_process():
        probes.save(usage, run.folder / "frequency_usage.nc")
    metrics = sharding.on_main(lambda: read_metrics(run.folder))
    return results.Outcome(run, held_out, usage, metrics)


def _probe_held_out(
    decoder: Decoder, params: dict, corpus: Corpus, windows: int, at_a_time: int
) -> xarray.Dataset:
    """Frequency usage on held-out windows."""
    held_out = corpus.held_out_batches(windows, at_a_time)
    batches = [(tokens[:, :-1], weights[:, :-1]) for tokens, weights in held_out]
    read = int(sum(weights[:, 0].sum() for _, weights in batches))  # there may be fewer
    text = f"{read} held-out windows of {corpus.name}"
    datasets = probes.run(decoder, params, batches, [probes.frequency_usage], text=text)
    return datasets["frequency_usage"]


def main() -> None:
    """The command."""
    command.run_config(study, resolve, __doc__)


if __name__ == "__main__":
    main()
