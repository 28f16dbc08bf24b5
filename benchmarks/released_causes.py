"""What a released model needs of each rotary frequency, by taking its rotation or the pair away.

    python benchmarks/released_causes.py --checkpoint=model.gguf --text=wiki.jsonl --out=results/x

Two parts. `rotation`: loss against how many of the slowest pairs are unrotated, which is p-RoPE put
under the trained weights, and how many of the fastest, on windows of several lengths. `bands`:
eighths of the pairs unrotated, ablated, and ablated beside random pairs of the same norm, with the
attention of every head and the gain from copying. Minutes a part on one GPU for 0.3B parameters.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import xarray

from rope_study import checkpoints, data, probes
from rope_study.decoder import Decoder
from rope_study.interventions import (
    Band,
    Intervention,
    ablate,
    band,
    measure,
    random_band,
    unrotate,
)

STEPS = 16  # of unrotated pairs, from none to all
BANDS = 8


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--text", required=True, help="What data.read_documents takes.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--tokens", type=int, default=200_000, help="Read at each length.")
    parser.add_argument("--batch", type=int, default=8192, help="Tokens at once, or one window.")
    parser.add_argument("--parts", nargs="+", default=["rotation", "bands"])
    arguments = parser.parse_args()
    decoder, params = checkpoints.load(arguments.checkpoint)
    tokenizer = checkpoints.load_tokenizer(arguments.checkpoint)
    pieces = data.pieces(data.read_documents(arguments.text))
    stream = [tokenizer.encode(piece) for piece in pieces]
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "text": Path(arguments.text).name,
    }
    if "rotation" in arguments.parts:
        for length in arguments.lengths:
            start = time.perf_counter()
            texts = windows(stream, tokenizer.bos, length, arguments.tokens, arguments.batch)
            measured = rotation(decoder, params, texts).assign_attrs(facts)
            measured.to_netcdf(arguments.out / f"rotation_{length}.nc")
            show(measured, f"{length} tokens, {time.perf_counter() - start:.0f} s")
    if "bands" in arguments.parts:
        start = time.perf_counter()
        texts = windows(stream, tokenizer.bos, 512, arguments.tokens // 8, arguments.batch)
        measured = by_band(decoder, params, texts).assign_attrs(facts)
        measured.to_netcdf(arguments.out / "bands.nc")
        show(measured, f"bands, {time.perf_counter() - start:.0f} s")


Batch = tuple[np.ndarray, np.ndarray]


def windows(
    documents: list[np.ndarray], bos: int | None, length: int, tokens: int, batch: int
) -> list[Batch]:
    """Consecutive windows of `length` tokens, the first of them BOS where the model has one."""
    start = np.array([] if bos is None else [bos], int)
    stream = np.concatenate(documents)
    size = length - len(start)
    count = min(max(tokens // length, 1), len(stream) // size)
    rows = np.stack([
        np.concatenate([start, stream[i * size : (i + 1) * size]]) for i in range(count)
    ]).astype(np.int32)  # fmt: skip
    together = max(batch // length, 1)
    whole = rows[: len(rows) // together * together].reshape(-1, together, length)
    return [(rows, np.ones(rows.shape, np.float32)) for rows in whole]


def layer_kinds(decoder: Decoder) -> dict[str, list[int]]:
    """Which layers are local and which global, where there are both; all of them first."""
    specs = decoder.config.layer_specs
    kinds = {"all": list(range(len(specs)))}
    local = [i for i, spec in enumerate(specs) if spec.window is not None]
    if 0 < len(local) < len(specs):
        kinds |= {"local": local, "global": sorted(set(kinds["all"]) - set(local))}
    return kinds


def rotation(decoder: Decoder, params: dict, texts: list[Batch]) -> xarray.Dataset:
    """Losses with so many pairs unrotated, the slowest or the fastest, by kind of layer."""
    pairs = decoder.config.head_dim // 2
    counts = [round(pairs * step / STEPS) for step in range(1, STEPS + 1)]
    edits: dict[str, Intervention] = {}
    for kind, layers in layer_kinds(decoder).items():
        for count in counts if kind == "all" else counts[1::2]:
            slowest = band(indices=range(pairs - count, pairs))
            edits[f"{kind} slowest {count}"] = unrotate(slowest, layers=layers)
    for count in (max(pairs // 32, 1), pairs // 16, pairs // 8):
        edits[f"all fastest {count}"] = unrotate(band(indices=range(count)))
    return measure(decoder, params, texts, edits, attention=False, copies=0)


def by_band(decoder: Decoder, params: dict, texts: list[Batch]) -> xarray.Dataset:
    """Every eighth of the pairs unrotated, ablated, and random pairs of its norm ablated."""
    usage = probes.run(decoder, params, texts, [probes.frequency_usage])["frequency_usage"]
    edits = dict(_band_edits(decoder.config.head_dim // 2, usage))
    return measure(decoder, params, texts, edits, copies=32, copy_length=64)


def _band_edits(pairs: int, usage: xarray.Dataset) -> Iterator[tuple[str, Intervention]]:
    for i, members in enumerate(np.array_split(np.arange(pairs), BANDS)):
        eighth: Band = band(indices=members)
        yield f"unrotate {i}", unrotate(eighth)
        yield f"ablate {i}", ablate(eighth)
        yield f"control {i}", ablate(random_band(usage, eighth, seed=0))


def show(measured: xarray.Dataset, title: str) -> None:
    """Prints losses, and what is not an array as one line of JSON."""
    print(f"\n{title}: {json.dumps({k: measured.attrs[k] for k in ('model', 'tokens', 'texts')})}")
    print(f"{'intervention':<24} {'loss':>8} {'difference':>11} {'s.e.':>8}")
    for name in measured.intervention.values:
        row = measured.sel(intervention=name)
        print(
            f"{name:<24} {float(row.loss):8.4f} {float(row.loss_difference):+11.4f}"
            f" {float(row.loss_difference_se):8.4f}"
        )


if __name__ == "__main__":
    main()
