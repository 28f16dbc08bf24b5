"""A released model trained on under other encodings, one process a GPU: what can be relearnt.

    python benchmarks/continued_training.py --checkpoint=model.gguf --text='wiki_train_*.jsonl.xz' \
        --held_out=wiki_test.jsonl.xz --out=results/released/smollm2/continued

Every encoding begins with the same weights and reads the same batches (train.init_from). Written
for each: held-out loss by position before and after, within the trained length and past it, the
training curve, and frequency usage before and after. Windows are of joined documents.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import xarray

from rope_study import checkpoints, data, probes, sharding
from rope_study.data import Corpus, batches
from rope_study.decoder import Decoder
from rope_study.training import settings, trainer
from rope_study.training.evaluate import evaluate
from rope_study.training.metrics import read_metrics

ENCODINGS = [f"{name}theta=100_000)" for name in ("rope(", "p_rope(p=0.75, ", "p_rope(p=0.5, ")]
ENCODINGS += ["nope"]
TRAIN, HELD_OUT = "train.npy", "held_out.npy"  # tokens, in the folder of the runs


def main() -> None:
    """The command: tokens once, then a process for every encoding, as many at a time as GPUs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--text", required=True, help="What data.read_documents takes.")
    parser.add_argument("--held_out", required=True, help="The same, of other documents.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encodings", nargs="+", default=ENCODINGS)
    parser.add_argument("--length", type=int, default=8192, help="Tokens a window.")
    parser.add_argument("--batch", type=int, default=8, help="Windows a step.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32_768], help="Evaluated.")
    parser.add_argument("--tokens", type=int, default=524_288, help="Evaluated at each length.")
    parser.add_argument("--attention", default="cudnn")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("/tmp/continued"))
    parser.add_argument("--only", help="This encoding, in this process.")
    arguments = parser.parse_args()
    if arguments.only:
        return measure(arguments.only, arguments)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name, text in ((TRAIN, arguments.text), (HELD_OUT, arguments.held_out)):
        np.save(arguments.runs / name, tokenize(arguments.checkpoint, text))
    running: dict[int, subprocess.Popen] = {}
    for number, encoding in enumerate(arguments.encodings):
        gpu = number % arguments.gpus
        if gpu in running:
            running[gpu].wait()
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
        command = [sys.executable, *sys.argv, f"--only={encoding}"]
        running[gpu] = subprocess.Popen(command, env=environment)
    sys.exit(max(process.wait() for process in running.values()))


def tokenize(checkpoint: str, text: str) -> np.ndarray:
    """One stream of all documents, by all cores."""
    documents = data.pieces(data.read_documents(text))
    with multiprocessing.get_context("fork").Pool() as pool:
        parts = np.array_split(np.arange(len(documents)), 4 * pool._processes)
        jobs = [(checkpoint, [documents[i] for i in part]) for part in parts]
        return np.concatenate(pool.starmap(_tokenize, jobs))


def _tokenize(checkpoint: str, documents: list[str]) -> np.ndarray:
    return batches.tokenize(documents, checkpoints.load_tokenizer(checkpoint))


def measure(encoding: str, arguments: argparse.Namespace) -> None:
    """Evaluates, trains, and evaluates again under one encoding; writes its files."""
    config = settings.default()
    config.workdir = str(arguments.runs)
    config.data.tokenizer = config.train.init_from = arguments.checkpoint
    config.data.length, config.data.batch_size = arguments.length, arguments.batch
    config.model.compute_dtype, config.model.attention = "bfloat16", arguments.attention
    config.model.scan, config.model.remat = False, "none"
    config.train.steps, config.train.warmup = arguments.steps, arguments.steps // 15
    config.train.learning_rate = arguments.learning_rate
    config.train.checkpoint_every, config.train.log_every = 10**6, 5
    (run,) = settings.resolve(config, [encoding]).runs
    tokens = [np.load(arguments.runs / name, mmap_mode="r") for name in (TRAIN, HELD_OUT)]
    tokenizer = checkpoints.load_tokenizer(arguments.checkpoint)
    corpus = Corpus(arguments.text, "", tokenizer, *tokens, arguments.length, arguments.batch)

    reader = Decoder(dataclasses.replace(run.decoder, scan=True), sharding.one_device())
    _, weights = checkpoints.load(arguments.checkpoint, rotary=encoding)
    before = read(reader, weights, corpus, arguments)
    _, params = trainer.train(run, corpus, sharding.make_layout())
    after = read(reader, params, corpus, arguments)
    measured = xarray.concat([before, after], xarray.Variable("trained", [0, arguments.steps]))
    rows = read_metrics(run.folder)
    measured["training_loss"] = "step", [row["loss"] for row in rows], {"units": "nats"}
    measured = measured.assign_coords(step=[row["step"] for row in rows])
    measured.attrs = {
        "encoding": run.name,
        "config": json.dumps(config.to_dict()),
        "text": Path(arguments.text).name,
        "held_out": Path(arguments.held_out).name,
        "tokens_per_second": rows[-1]["tokens_per_second"],
        "command": " ".join(["python benchmarks/continued_training.py", *sys.argv[1:]]),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured.to_netcdf(arguments.out / f"{settings.folder_name(run.name)}.nc")
    print(f"{run.name}: {rows[-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
    for length in arguments.lengths:
        print(run.name, length, measured[f"loss_{length}"].mean(f"position_{length}").values)


def read(
    decoder: Decoder, params: dict, corpus: Corpus, arguments: argparse.Namespace
) -> xarray.Dataset:
    """Held-out loss by position and its standard error, and frequency usage by layer."""
    start, measured = time.monotonic(), {}
    for length in arguments.lengths:
        rows = max(1, arguments.batch * arguments.length // length)
        windows = batches.held_out_batches(
            corpus.held_out, length, rows, corpus.tokenizer.bos, arguments.tokens // length
        )
        losses = evaluate(decoder, params, windows).losses
        # 64 groups of positions: what a figure can show.
        groups = losses.reshape(len(losses), 64, -1).mean(2)
        error = groups.std(0, ddof=1) / np.sqrt(len(groups))
        place = {f"position_{length}": (np.arange(64) + 1) * length // 64}
        for name, values in ((f"loss_{length}", groups.mean(0)), (f"error_{length}", error)):
            measured[name] = xarray.DataArray(values, place, attrs={"units": "nats"})
    windows = batches.held_out_batches(
        corpus.held_out, arguments.length, 1, corpus.tokenizer.bos, 8
    )
    texts = [(window[:, :-1], np.ones_like(window[:, 1:], np.float32)) for window, _ in windows]
    usage = probes.run(decoder, params, texts, [probes.frequency_usage])["frequency_usage"]
    measured |= {name: usage[name].mean("head" if "head" in usage[name].dims else "kv_head")
              for name in ("q", "k", "v")}  # fmt: skip
    print(f"{time.monotonic() - start:.0f} s read", flush=True)
    return xarray.Dataset(measured)


if __name__ == "__main__":
    main()
