"""One row of benchmarks/scaling.py, in a process of its own that sees its devices and no others.

The row is the first argument, as JSON; a folder that rows and processes share is the second, the
number of this process in its row the third. The last line printed is what was measured, as JSON.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import collectives
import jax
import numpy as np

from rope_study import sharding
from rope_study.checkpoints import runs
from rope_study.decoder import Decoder, DecoderConfig, fit_layout, presets
from rope_study.decoder.flops import train_flops
from rope_study.training import settings
from rope_study.training.trainer import Trainer

WARM, TRACED = 3, 3  # steps before those that are timed, and after
SAVED, NEXT = 5, 3  # steps before a checkpoint, and after it


@dataclasses.dataclass(frozen=True)
class Row:
    """What is run on how many devices.

    Attributes:
      kind: "step" of one run; "side by side": as many runs as devices, one on each; "save", and
        "restore" of what it saved.
      batch: windows a step, over all devices of a run.
      scaling: "weak": batch grows with the devices; "strong": it does not; "-": one device.
      processes: among which the devices are shared.
      small: sizes that a CPU runs in seconds, to try the rows.
    """

    kind: str
    model: str
    devices: int
    batch: int
    length: int = 2048
    mesh: str = "fsdp=-1"
    scaling: str = "-"
    processes: int = 1
    small: bool = False


def main() -> None:
    """Runs the row and prints."""
    row, folder, number = Row(**json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
    sharding.start()
    here = 1 if row.kind == "side by side" else row.devices
    assert len(jax.devices()) == here, f"error: {row.devices} devices, not {jax.devices()}"
    measure = {"save": save, "restore": restore}.get(row.kind)
    measured = measure(row, folder) if measure else time_steps(row, folder, number)
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    print(json.dumps(measured | about), flush=True)


def decoder_config(row: Row) -> DecoderConfig:
    """Unrolled and without recomputation, but for long texts."""
    if row.small:
        config = dataclasses.replace(presets.tiny(), kv_heads=1)
    elif row.model == "gemma_2b":
        config = presets.gemma_2b()
    else:  # 82M
        config = DecoderConfig(
            vocab_size=16_000, d_model=768, layers=8, heads=3, kv_heads=1, head_dim=256,
            mlp_hidden=3072,
        )  # fmt: skip
    long = row.length > 2048
    return dataclasses.replace(
        config,
        compute_dtype="bfloat16",
        attention="auto" if row.small else "cudnn",
        scan=long,
        remat="full" if long else "none",
    )


def make_trainer(row: Row) -> Trainer:
    """On all devices that are seen."""
    config = decoder_config(row)
    layout = fit_layout(config, sharding.make_layout(row.mesh))
    train = settings.resolve(settings.default()).runs[0].train
    return Trainer(Decoder(config, layout), train, seed=0)


def batch_of(row: Row, trainer: Trainer, step: int) -> jax.Array:
    """Windows of random tokens, the same on any devices."""
    length = row.length // 32 if row.small else row.length
    ids = np.random.default_rng(step).integers(0, 256, (row.batch, length + 1), np.int32)
    return trainer.layout.place(ids)


def time_steps(row: Row, folder: Path, number: int) -> dict[str, Any]:
    """Median seconds of a step, what follows from them, and what a trace of some more says."""
    trainer = make_trainer(row)
    state, windows = trainer.init(), batch_of(row, trainer, 0)
    begun = time.perf_counter()
    step = trainer.step.lower(state, windows).compile()
    compiled = time.perf_counter() - begun
    state, _ = timed(step, state, windows, WARM)
    if row.kind == "side by side":
        meet(folder / "meeting", number, row.devices)
    steps = 10 if row.model == "gemma_2b" else 50
    state, seconds = timed(step, state, windows, steps)
    median, tokens = statistics.median(seconds), row.batch * (windows.shape[1] - 1)
    memory = step.memory_analysis()
    flops = train_flops(trainer.decoder.config, row.batch, windows.shape[1] - 1)
    devices = len(jax.devices())
    used = jax.local_devices()[0].memory_stats() or {}
    return {
        "seconds": median, "slowest": max(seconds), "tokens_per_second": tokens / median,
        "tflops_a_device": flops / median / devices / 1e12,
        "gib_a_device": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
        "peak_gib": used.get("peak_bytes_in_use", 0) / 2**30,
        "compile_seconds": compiled,  # less where a row before it compiled the same
        **traced(step, state, windows),
    }  # fmt: skip


def timed(step: Any, state: Any, windows: jax.Array, steps: int) -> tuple[Any, list[float]]:
    """The state after so many steps, and the seconds between them.

    As in training the loss is read a step late, so that devices do not wait for the host.
    """
    state, before = step(state, windows)
    float(before["loss"])
    ends = [time.perf_counter()]
    state, before = step(state, windows)
    for _ in range(steps):
        state, metrics = step(state, windows)
        float(before["loss"])
        ends.append(time.perf_counter())
        before = metrics
    assert np.isfinite(float(before["loss"])), "error: the loss is not finite"
    return state, list(np.diff(ends))


def traced(step: Any, state: Any, windows: jax.Array) -> dict:
    """What a trace of some steps says of this process's devices; empty on CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            collectives.trace(Path(folder))
            for _ in range(TRACED):
                state, metrics = step(state, windows)
            jax.block_until_ready((state, metrics))
            jax.profiler.stop_trace()
            return collectives.shares(Path(folder))
        except Exception as error:  # the times are measured already
            return {"trace_error": repr(error)[:300]}


def meet(folder: Path, number: int, count: int) -> None:
    """Returns once so many processes have come here."""
    folder.mkdir(exist_ok=True)
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.01)


def save(row: Row, folder: Path) -> dict[str, Any]:
    """Trains, saves, and goes on: the losses of the next steps."""
    trainer = make_trainer(row)
    state, _ = train_from(row, trainer, trainer.init(), range(SAVED))
    (folder / runs.CHECKPOINTS).mkdir()
    begun = time.perf_counter()
    with runs.Manager(folder) as manager:
        trainer.save(manager, SAVED, state)
        manager.finish()
    seconds = time.perf_counter() - begun
    return {"save_seconds": seconds, "losses": next_losses(row, trainer, state)}


def restore(row: Row, folder: Path) -> dict[str, Any]:
    """The losses of the next steps by what `save` saved, on these devices."""
    trainer = make_trainer(row)
    begun = time.perf_counter()
    with runs.Manager(folder) as manager:
        assert manager.steps() == [SAVED], "error: nothing was saved"
        state = trainer.restore(manager)
    seconds = time.perf_counter() - begun
    return {"restore_seconds": seconds, "losses": next_losses(row, trainer, state)}


def next_losses(row: Row, trainer: Trainer, state: Any) -> list[float]:
    """Of the steps after the checkpoint."""
    return train_from(row, trainer, state, range(SAVED, SAVED + NEXT))[1]


def train_from(row: Row, trainer: Trainer, state: Any, steps: range) -> tuple[Any, list[float]]:
    """The state after these steps, and their losses."""
    losses = []
    for step in steps:
        state, metrics = trainer.step(state, batch_of(row, trainer, step))
        losses.append(float(metrics["loss"]))
    return state, losses


if __name__ == "__main__":
    main()
