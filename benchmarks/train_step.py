"""One training step of a preset, part by part: attention backend, remat, scan and the loss.

    python benchmarks/train_step.py --preset=gemma_2b --length=2048 --batch=8

Every variant runs the same step on the same tokens in one process; the last column is its speed
over that of the first row. Model FLOPs are those of decoder/flops.py. The loss after the last step
must agree between variants within bf16 rounding.
"""

import argparse
import dataclasses
import gc
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rope_study import sharding
from rope_study.decoder import Decoder, attention, loss, presets
from rope_study.decoder.attention import cudnn
from rope_study.decoder.flops import train_flops
from rope_study.training import settings
from rope_study.training.trainer import Trainer

CHUNKED = loss.cross_entropy


def full_logits(x, embedding, targets, weights, layout=None, chunk=None, cap=None):
    """The textbook loss: all logits at once, gradients by automatic differentiation."""
    logits = jnp.einsum(
        "btd,vd->btv", x, embedding.astype(x.dtype), preferred_element_type=jnp.float32
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights)


def measure(c, batch: int, length: int, steps: int, accumulate: int) -> dict:
    """Median seconds of a step, device memory and the last loss."""
    decoder = Decoder(c, sharding.one_device())
    config = settings.default()
    config.train.accumulate = accumulate
    trainer = Trainer(decoder, settings.TrainSettings(**config.train.to_dict()), seed=0)
    rng = np.random.default_rng(0)
    windows = [
        decoder.layout.place(rng.integers(0, 250_000 % c.vocab_size, (batch, length + 1), np.int32))
        for _ in range(2)
    ]
    start = time.perf_counter()
    state = trainer.init()
    step = trainer.step.lower(state, windows[0]).compile()
    compiled = time.perf_counter() - start
    memory = step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    seconds = []
    for rows in itertools.islice(itertools.cycle(windows), steps + 2):
        start = time.perf_counter()
        state, metrics = step(state, rows)
        last = float(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[2:]), "compile": compiled,
        "memory": held / 2**30, "loss": last,
    }  # fmt: skip


def attention_error() -> float:
    """cuDNN in bf16 against the reference in f32 on the same numbers, relative."""
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 512, 8, 256), jnp.bfloat16)
    k, v = (jax.random.normal(key, (2, 512, 1, 256), jnp.bfloat16) for key in keys[1:])
    error = 0.0
    for window in (None, 100):
        exact = attention.attend(*(a.astype(jnp.float32) for a in (q, k, v)), window)
        got = cudnn.attend(q, k, v, window).astype(jnp.float32)
        error = max(error, float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact)))
    return error


def variants(base, gpu: bool) -> list[tuple[str, object, object]]:
    """(name, configuration, loss): each row changes one thing."""
    backend = "cudnn" if gpu else "reference"
    change = dataclasses.replace
    saving = change(base, attention=backend, remat="full", scan=True)
    unrolled = change(base, attention=backend, remat="none", scan=False)
    rows = [
        ("scan, remat full, all logits", saving, full_logits),
        ("scan, remat full, chunked loss", saving, CHUNKED),
        ("scan, remat dots, chunked loss", change(saving, remat="dots"), CHUNKED),
        ("unrolled, no remat, all logits", unrolled, full_logits),
        ("unrolled, no remat, chunked loss", unrolled, CHUNKED),
    ]
    reference = change(saving, attention="reference")
    return [("reference attention, scan, remat full, all logits", reference, full_logits)] * (
        gpu
    ) + rows


def main() -> None:
    """Runs all variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gemma_2b", choices=presets.PRESETS)
    parser.add_argument("--length", type=int, default=2048, help="tokens a sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a variant")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset's")
    args = parser.parse_args()
    base = presets.PRESETS.make(args.preset)
    base = dataclasses.replace(base, layers=args.layers or base.layers)
    device = jax.devices()[0]
    gpu = device.platform == "gpu"
    print(
        f"{args.preset}, {base.layers} layers, {args.batch} x {args.length}, {device.device_kind}"
    )
    if gpu:
        print(f"cuDNN attention against f32 reference: relative error {attention_error():.1e}")
    flops = train_flops(base, args.batch, args.length)
    print(f"{'variant':<50} {'s/step':>7} {'tokens/s':>9} {'TFLOP/s':>8} {'GiB':>6} "
          f"{'compile s':>9} {'loss':>8} {'speed':>6}")  # fmt: skip
    first = None
    for name, c, cross_entropy in variants(base, gpu):
        loss.cross_entropy = cross_entropy
        try:
            row = measure(c, args.batch, args.length, args.steps, args.accumulate)
        except jax.errors.JaxRuntimeError as error:  # out of memory is a result too
            print(f"{name:<50} {str(error).splitlines()[0][:80]}")
            continue
        finally:
            gc.collect()
            jax.clear_caches()
        s = row["seconds"]
        first = first or s
        print(f"{name:<50} {s:7.3f} {args.batch * args.length / s:9,.0f} {flops / s / 1e12:8.1f} "
              f"{row['memory']:6.1f} {row['compile']:9.1f} {row['loss']:8.4f} {first / s:6.2f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
