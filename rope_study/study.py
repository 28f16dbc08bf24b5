"""Encodings side by side: `python -m rope_study.study --config=configs/quickstart.py`.

Trains the same decoder from the same initial weights on the same batches once per encoding,
evaluates each on held-out documents, probes how it uses its frequencies, and writes a table,
figures and one report.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import jax
import ml_collections
import numpy as np
import xarray

from rope_study import command, data, figures, files, probes, sharding
from rope_study.decoder import Decoder, fit_layout, parameter_count, variants
from rope_study.reports import study as study_report
from rope_study.sharding import is_main_process
from rope_study.training import run_folder, settings, trainer
from rope_study.training.evaluate import Evaluation, evaluate
from rope_study.training.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one encoding gave."""

    name: str
    folder: Path
    evaluation: Evaluation
    usage: xarray.Dataset


def study(config: ml_collections.ConfigDict) -> dict:
    """Runs or continues the study of `config`; returns what results.json holds.

    Raises:
      UserError: wrong settings or text; raised before anything is written.
    """
    corpus = data.load_corpus(config)
    decoders = build_decoders(config, corpus.tokenizer.vocab_size)
    folder = Path(config.workdir)
    run_folder.claim(folder, run_folder.identity(config, corpus=corpus.fingerprint))
    outcomes = [run_one(name, decoder, corpus, config, folder) for name, decoder in decoders]
    results = summarise(outcomes, corpus, config, decoders[0][1])
    if is_main_process():
        write_outputs(folder, results, outcomes)
        print(table(results["encodings"]))
        print(f"\nreport: {folder / 'report.html'}")
    return results


def build_decoders(config: ml_collections.ConfigDict, vocab_size: int) -> list[tuple[str, Decoder]]:
    """One decoder per encoding, with its name; the same but for that."""
    base = settings.decoder_config(config, vocab_size)
    layout = fit_layout(base, sharding.make_layout(config.mesh))
    layout.check_rows(config.data.batch_size)
    named = [variants.apply(base, encoding) for encoding in config.encodings]
    return [(name, Decoder(changed, layout)) for name, changed in named]


def run_one(
    name: str,
    decoder: Decoder,
    corpus: data.Corpus,
    config: ml_collections.ConfigDict,
    workdir: Path,
) -> Outcome:
    """Trains, evaluates and probes one encoding in a folder of its own."""
    folder = run_folder / folder_name(name)
    params = trainer.train(decoder, corpus, config, folder, label=name)
    evaluation = evaluate(decoder, params, corpus.held_out_batches(config.evaluate.windows))
    usage = probe_held_out(decoder, params, corpus, config.probe.windows)
    if is_main_process():
        probes.save(usage, folder / "frequency_usage.nc")
    return Outcome(name, folder, evaluation, usage)


def probe_held_out(
    decoder: Decoder, params: dict, corpus: data.Corpus, windows: int
) -> xarray.Dataset:
    """Frequency usage on held-out windows."""
    batches = (
        (rows[:, :-1], np.repeat(weights[:, None], rows.shape[1] - 1, axis=1))
        for rows, weights in corpus.held_out_batches(windows)
    )
    text = f"{windows} held-out windows of {corpus.name}"
    found = probes.run(decoder, params, batches, [probes.frequency_usage], text=text)
    return found["frequency_usage"]


def folder_name(name: str) -> str:
    """An encoding's name as a folder: p_rope(p=0.75, theta=10000) -> p_rope_p0.75_theta10000.

    File systems take 255 bytes: a longer name (LongRoPE's factors) ends in a digest instead.
    """
    folder = re.sub(r"[^A-Za-z0-9.]+", "_", name.replace("=", "")).strip("_")
    if len(folder) <= 200:
        return folder
    return f"{folder[:100]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def summarise(
    outcomes: list[Outcome],
    corpus: data.Corpus,
    config: ml_collections.ConfigDict,
    decoder: Decoder,
) -> dict:
    """Everything measured, as JSON values."""
    rows = []
    for outcome in outcomes:
        first = outcome is outcomes[0]
        difference = outcome.evaluation.difference(outcomes[0].evaluation)
        metrics = read_metrics(outcome.folder)
        rows.append({
            "name": outcome.name,
            "perplexity": outcome.evaluation.perplexity,
            "loss": outcome.evaluation.loss,
            "difference": None if first else difference[0],
            "difference_se": None if first else difference[1],
            "train_loss": metrics[-1]["loss"],
            "tokens_per_second": float(np.median([row["tokens_per_second"] for row in metrics])),
        })  # fmt: skip
    tokens_a_step = config.data.batch_size * config.data.length
    facts = {
        "tokens seen": config.train.steps * tokens_a_step,
        "parameters": parameter_count(decoder.config),
        "seed": config.seed,
        "corpus": corpus.name,
        "corpus fingerprint": corpus.fingerprint,
        "training tokens": len(corpus.train),
        "held-out tokens evaluated": outcomes[0].evaluation.losses.size,
        "sequence length": config.data.length,
        "tokenizer": corpus.tokenizer.name,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **{f"version of {name}": version for name, version in versions().items()},
    }
    return {"encodings": rows, "facts": facts}


def versions() -> dict[str, str]:
    """Of Python and the libraries that the numbers depend on."""
    libraries = ("rope_study", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: _version(name) for name in libraries}
    return {"python": platform.python_version()} | found


def _version(name: str) -> str:
    """Of an installed distribution; this project also runs from a folder that was not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(rows: list[dict]) -> str:
    """The results as text; differences are from the first encoding, with their standard error."""
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'encoding':<{width}}  perplexity  loss (nats)  difference +- s.e.    tokens/s"]
    for row in rows:
        difference = "-"
        if row["difference"] is not None:
            difference = f"{row['difference']:+.4f} +- {row['difference_se']:.4f}"
        lines.append(
            f"{row['name']:<{width}}  {row['perplexity']:>10.4f}  {row['loss']:>11.4f}"
            f"  {difference:>18}  {row['tokens_per_second']:>10,.0f}"
        )
    return "\n".join(lines)


CAPTIONS = {
    "loss_curves": "Training loss. All encodings saw the same batches from the same weights.",
    "frequency_usage": "Mean norm of each rotary pair of queries and keys before rotation, by"
    " layer (Fig. 3 of the paper), one colour scale for queries and one for keys."
    " Bright bands are the frequencies that a layer uses; the fastest pairs are on the left.",
    "norms_by_layer": "Fig. 3 of the paper for this encoding: queries and keys by layer.",
    "norms_by_head": "Fig. 4 of the paper: the first layer by head.",
    "values": "Fig. 13 of the paper, the control: values are not rotated and should show no order.",
    "decay": "Fig. 2 of the paper: the logit decays with distance for constant queries and keys,"
    " and not for Gaussian ones.",
}


def write_outputs(folder: Path, results: dict, outcomes: list[Outcome]) -> None:
    """results.json, the figures as PNG, and report.html."""
    files.write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    drawn, captions = draw(outcomes)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
    study_report.write_report(folder / "report.html", results | {"captions": captions}, drawn)


def draw(outcomes: list[Outcome]) -> tuple[dict, dict]:
    """The figures of a study, and their captions, in the order of the report."""
    curves = {}
    for outcome in outcomes:
        rows = read_metrics(outcome.folder)
        steps, losses = zip(*((row["step"], row["loss"]) for row in rows), strict=True)
        curves[outcome.name] = np.array(steps), np.array(losses)
    drawn = {
        "loss_curves": figures.loss_curves(curves),
        "frequency_usage": figures.usage_side_by_side({o.name: o.usage for o in outcomes}),
    }
    captions = {name: CAPTIONS[name] for name in drawn}
    for outcome in outcomes:
        of_one = {
            "norms_by_layer": figures.norms_by_layer(outcome.usage),
            "norms_by_head": figures.norms_by_head(outcome.usage, layer=0),
            "values": figures.value_norms(outcome.usage),
        }
        for name, figure in of_one.items():
            key = f"{name}_{outcome.folder.name}"
            drawn[key], captions[key] = figure, CAPTIONS[name]
    drawn["decay"], captions["decay"] = figures.decay(), CAPTIONS["decay"]
    return drawn, captions


if __name__ == "__main__":
    command.run(study)
