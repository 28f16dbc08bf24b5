"""Training over 1, 2, 4... devices of one host: how much of their speed is kept.

    python benchmarks/scaling.py --preset=gemma_2b --length=2048 --batch=4 --devices 1 2 4

Weak scaling: the same batch a device; strong: the same batch in all. Every row is a process of its
own that sees only its devices; rows run side by side where enough are free. Efficiency is tokens/s
a device over those of one. --options adds what XLA is told, as name=true,other=3.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from rope_study import sharding
from rope_study.decoder import Decoder, fit_layout, presets
from rope_study.decoder.flops import train_flops
from rope_study.training import settings
from rope_study.training.trainer import Trainer

RUNNING = {  # how a decoder is run
    "unrolled": {"scan": False, "remat": "none"},
    "scan, remat dots": {"scan": True, "remat": "dots"},
    "scan, remat full": {"scan": True, "remat": "full"},
}


def main() -> None:
    """Runs all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gemma_2b", choices=presets.PRESETS)
    parser.add_argument("--length", type=int, default=2048, help="Tokens a window.")
    parser.add_argument("--batch", type=int, default=4, help="Windows a step, of one device.")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--scaling", nargs="+", default=["weak", "strong"])
    parser.add_argument("--running", nargs="+", default=["unrolled"], choices=RUNNING)
    parser.add_argument("--mesh", nargs="+", default=["fsdp=-1"])
    parser.add_argument("--options", nargs="+", default=[""], help="Sets of XLA options, a,b=c.")
    parser.add_argument("--attention", default="cudnn")
    parser.add_argument("--steps", type=int, default=10, help="Timed steps a row.")
    parser.add_argument("--out", type=Path, help="A JSON file to add the rows to.")
    parser.add_argument("--row", type=json.loads, help="This row, in this process.")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(arguments.row | measure(arguments)), flush=True)
        return
    rows = run_all(row_settings(arguments), max(arguments.devices))
    if arguments.out:
        before = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
        arguments.out.write_text(json.dumps(before + rows, indent=1) + "\n")
    print_table(rows)


def row_settings(arguments: argparse.Namespace) -> list[dict]:
    """What each row varies; on one device weak, strong and every mesh are the same."""
    rows = {}
    for running in arguments.running:
        for options in arguments.options:
            for devices in arguments.devices:
                for mesh in arguments.mesh:
                    for scaling in arguments.scaling:
                        batch = arguments.batch * (devices if scaling == "weak" else 1)
                        row = {"devices": devices, "running": running, "batch": batch}
                        row |= {"scaling": scaling, "mesh": mesh, "options": options}
                        if devices == 1:
                            row |= {"scaling": "-", "mesh": "fsdp=-1"}
                        if batch >= devices:
                            rows[json.dumps(row)] = row
    return list(rows.values())


def run_all(rows: list[dict], devices: int) -> list[dict]:
    """The measured rows, those that need most devices first, on as many at once as are free."""
    waiting = sorted(rows, key=lambda row: -row["devices"])
    free, running, measured = list(range(devices)), [], []
    while waiting or running:
        for row in list(waiting):
            if row["devices"] <= len(free):
                mine, free = free[: row["devices"]], free[row["devices"] :]
                running.append((row, mine, *start(row, mine)))
                waiting.remove(row)
        time.sleep(0.2)
        for job in [job for job in running if job[2].poll() is not None]:
            running.remove(job)
            row, mine, _, output = job
            free += mine
            output.seek(0)
            lines = output.read().splitlines() or [""]
            error = {"error": next((line for line in lines[::-1] if "rror" in line), lines[-1])}
            measured.append(json.loads(lines[-1]) if lines[-1][:1] == "{" else row | error)
            print(measured[-1], file=sys.stderr, flush=True)
    return measured


def start(row: dict, devices: list[int]) -> tuple:
    """A process for one row, and the file with what it prints."""
    output = tempfile.TemporaryFile("w+")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
    command = [sys.executable, *sys.argv, f"--row={json.dumps(row)}"]
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output), output


def measure(arguments: argparse.Namespace) -> dict:
    """Median seconds of a step and what follows from them, on all devices that are seen."""
    row = arguments.row
    assert len(jax.devices()) == row["devices"], jax.devices()
    config = dataclasses.replace(
        presets.PRESETS.make(arguments.preset),
        attention=arguments.attention,
        **RUNNING[row["running"]],
    )
    layout = fit_layout(config, sharding.make_layout(row["mesh"]))
    train = settings.resolve(settings.default()).runs[0].train
    trainer = Trainer(Decoder(config, layout), train, seed=0)
    tokens = np.random.default_rng(0).integers(
        0, 256, (row["batch"], arguments.length + 1), np.int32
    )
    windows, state = layout.place(tokens), trainer.init()
    begun = time.perf_counter()
    pairs = [option.split("=") for option in filter(None, row["options"].split(","))]
    options = {name: json.loads(value) for name, value in pairs}
    step = trainer.step.lower(state, windows).compile(options)
    compiled = time.perf_counter() - begun
    seconds = []
    for _ in range(arguments.steps + 3):
        begun = time.perf_counter()
        state, metrics = step(state, windows)
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[3:])
    memory = step.memory_analysis()
    flops = train_flops(config, row["batch"], arguments.length)
    return {
        "preset": arguments.preset, "length": arguments.length, "seconds": median,
        "tokens_per_second": row["batch"] * arguments.length / median,
        "tflops_a_device": flops / median / row["devices"] / 1e12,
        "gib_a_device": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
        "compile_seconds": compiled, "loss": loss, "device": jax.devices()[0].device_kind,
        "jax": jax.__version__, "command": " ".join(["python", *sys.argv[:-1]]),
    }  # fmt: skip


def print_table(rows: list[dict]) -> None:
    """The rows, each beside the one of one device that runs alike."""
    print(f"{'devices':>7} {'scaling':<7} {'mesh':<16} {'running':<17} {'batch':>5} "
          f"{'tokens/s':>9} {'TFLOP/s':>8} {'GiB':>6} {'kept':>6}  options")  # fmt: skip
    alone = {
        (r["running"], r["options"]): r for r in rows if r["devices"] == 1 and "error" not in r
    }
    for row in sorted(rows, key=lambda r: (r["running"], r["options"], r["devices"])):
        about = f"{row['devices']:>7} {row['scaling']:<7} {row['mesh']:<16} {row['running']:<17}"
        if "error" in row:
            print(about, row["error"][:200])
            continue
        one = alone.get((row["running"], row["options"])) or alone.get((row["running"], ""))
        kept = one and row["tflops_a_device"] / one["tflops_a_device"]
        print(f"{about} {row['batch']:>5} {row['tokens_per_second']:9,.0f} "
              f"{row['tflops_a_device']:8.1f} {row['gib_a_device']:6.1f} "
              f"{'' if kept is None else f'{kept:6.1%}'}  {row['options']}")  # fmt: skip


if __name__ == "__main__":
    main()
