"""Whether training waits for its data: the loop on a store against the loop on one fixed batch.

    python benchmarks/data_loop.py --out=results/data_loop_cpu.json

Makes a store of random tokens of so many gigabytes, once. In one process the same compiled step
runs on one batch that lies on the device, on batches read in the loop, and on those that a thread
reads ahead, as `train` has them, by turns; ratios are of the fastest turns. Two processes of their
own train one step from the store, one after the other: how long from their start to the end of the
step, and what of that was imports and compilation. Where PyTorch is installed, tensorboardX imports
it, which takes seconds.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STARTED = time.time()


def make_store(folder: Path, gigabytes: float) -> None:
    """Documents of 1,000 bytes as random tokens of the byte tokenizer."""
    import numpy as np

    from rope_study.data import ByteTokenizer
    from rope_study.data.store import Writer, write_index

    rng, size = np.random.default_rng(0), 1000
    writer, sides = Writer(folder, np.uint16), {}
    for side, share in (("train", 0.99), ("held_out", 0.01)):
        documents = round(share * gigabytes * 1e9 / 2 / size)
        for part in np.array_split(np.arange(documents), -(-documents // 20_000)):
            tokens = rng.integers(0, 256, (len(part), size), np.uint16)
            tokens[:, 0] = 256
            starts = np.arange(len(part), dtype=np.uint64) * np.uint64(size)
            writer.append({f"{side}.tokens": tokens.ravel(), f"{side}.starts": starts})
        sides[side] = {"documents": documents, "tokens": documents * size}
    writer.close()
    made = {"input": "random tokens", "held_out": 0.1}
    write_index(folder, writer.state, ByteTokenizer(), "random", **sides, made=made)


def resolved(arguments: argparse.Namespace, steps: int):
    """The run of the arguments."""
    from rope_study.training import settings

    config = settings.default()
    config.data.path = str(arguments.store)
    config.data.length, config.data.batch_size = arguments.length, arguments.batch
    config.data.documents = arguments.documents
    config.model.preset, config.model.compute_dtype = arguments.preset, arguments.dtype
    config.train.steps, config.train.warmup = steps, 1
    config.workdir = str(arguments.store.parent / f"run_{time.time_ns()}")
    return settings.resolve_one(config).runs[0]


def first_step(arguments: argparse.Namespace) -> dict:
    """Seconds from the start of this process, and of compilation among them."""
    import jax

    from rope_study import sharding
    from rope_study.data import load_corpus
    from rope_study.training import progress, trainer

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(seconds) if event.startswith("/jax/core/compile/") else None
        )
    )
    times = {"imports": time.time() - STARTED}

    class Reached(Exception):
        """The first step is done."""

    def update(self, step, metrics):
        jax.block_until_ready(metrics)
        times["first step"] = time.time() - STARTED
        raise Reached

    progress.Progress.update = update
    run = resolved(arguments, 1)
    layout = sharding.make_layout()
    times["devices"] = time.time() - STARTED
    corpus = load_corpus(run.data)
    times["corpus"] = time.time() - STARTED
    try:
        trainer.train(run, corpus, layout)
    except Reached:
        pass
    times["compilation"] = sum(compiled)
    times["beyond compilation"] = times["first step"] - times["compilation"]
    after = times["beyond compilation"] - times["imports"]
    times["from imports to first step, beyond compilation"] = after
    return times


def loops(arguments: argparse.Namespace) -> dict:
    """Seconds a step of either loop, and how long the host makes a batch."""
    import jax

    from rope_study import sharding
    from rope_study.data import load_corpus
    from rope_study.training import prefetch, trainer

    run = resolved(arguments, arguments.steps)
    corpus = load_corpus(run.data)
    made = trainer.make_trainer(run, sharding.make_layout())
    reader = prefetch.batch_reader(run, corpus, made.layout)
    state, read, fixed = made.init(), 0, reader(0)
    state, metrics = made.step(state, fixed)

    def batches(name: str) -> Iterator:
        steps = range(read, read + arguments.steps)
        if name == "prefetched":
            return prefetch.prefetched(reader, steps)
        return (fixed if name == "fixed" else reader(step) for step in steps)

    turns: dict[str, list[float]] = {"fixed": [], "read in the loop": [], "prefetched": []}
    for _ in range(arguments.turns):
        for name, seconds in turns.items():
            jax.block_until_ready(metrics)
            start = time.perf_counter()
            for batch in batches(name):
                state, metrics = made.step(state, batch)
            jax.block_until_ready(metrics)
            seconds.append((time.perf_counter() - start) / arguments.steps)
            read += arguments.steps
    start = time.perf_counter()
    for step in range(read, read + 20):
        jax.block_until_ready(reader(step))
    measured = {name: min(seconds) for name, seconds in turns.items()}
    return {
        "seconds a step": measured, "turns": turns,
        "seconds the host makes a batch": (time.perf_counter() - start) / 20,
        "over fixed": {name: seconds / measured["fixed"] for name, seconds in measured.items()},
    }  # fmt: skip


def main() -> None:
    """Makes the store where it is not there, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("runs/data_loop/store"))
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--documents", default="joined")
    parser.add_argument("--steps", type=int, default=20, help="a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--first_step", action="store_true", help="only that; prints JSON")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.first_step:
        print(json.dumps(first_step(arguments)))
        return
    if not (arguments.store / "index.json").exists():
        make_store(arguments.store, arguments.gigabytes)
    command = [sys.executable, *sys.argv, "--first_step"]
    starts = [
        json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for _ in range(2)
    ]
    import jax

    measured = {
        "command": " ".join(["python benchmarks/data_loop.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind, "jax": jax.__version__,
        "gigabytes": sum(f.stat().st_size for f in arguments.store.iterdir()) / 1e9,
        "loop": loops(arguments),
        "first step, a process each": starts,
    }  # fmt: skip
    text = json.dumps(measured, indent=1) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
